"""The promises that jno-lora makes to users of the adapters, each of them on every case."""

from jno_lora_chebyshev_kan.cases import CASES
from jno_lora_chebyshev_kan.plugin import jno_lora_wrappers

from jno_lora_testing import parametrize_with_checks


@parametrize_with_checks(CASES)
def test_conformance(check):
    check()


def test_every_adapter_has_a_case():
    assert {case.wrapper for case in CASES} == {*jno_lora_wrappers()}
