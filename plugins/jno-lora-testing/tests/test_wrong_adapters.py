"""The kit notices wrong adapters: for each, the check that the table names fails."""

import re

import pytest
from kit_cases import case_of
from wrong_adapters import TABLE
from wrong_adapters.transformations import StaticArray

from jno_lora_testing import ADVICE, CHECKS, ConformanceError, wrapper_checks

SURVIVORS = [wrong for wrong in TABLE if wrong.noticed_by in {None, *ADVICE} and not wrong.also]
CHECKED = [(wrong, check) for wrong in TABLE for check in (wrong.noticed_by, wrong.also) if check]


@pytest.mark.slow
def test_the_table_is_large_and_says_why_required_checks_miss_the_few_survivors():
    assert len(TABLE) >= 350
    assert len({str(wrong) for wrong in TABLE}) == len(TABLE)
    assert len(SURVIVORS) <= 0.07 * len(TABLE)
    assert all(wrong.survives for wrong in SURVIVORS)


@pytest.mark.slow
def test_every_check_notices_a_wrong_adapter():
    assert {wrong.noticed_by for wrong in TABLE} == {*CHECKS, None}


@pytest.mark.slow
@pytest.mark.parametrize(("wrong", "check"), CHECKED, ids=str)
def test_the_check_notices(wrong, check):
    messages = []
    for case in wrong.cases():
        try:
            wrapper_checks(case).get(check, bool)()
        except ConformanceError as err:
            messages.append(str(err))
            break
    (message,) = messages
    assert message.startswith(f"[{check}] {wrong}")
    assert re.search(wrong.says, message), message
    assert "What to do" in message or "What is checked" in message
    # The fault is the adapter's, not the case's.
    assert check != "symmetries" or "breaks it: for " in message


# Equinox warns, which is an error in the other tests.
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:A JAX array is being set as static")
def test_a_static_field_that_holds_an_array_is_named():
    with pytest.raises(ConformanceError, match=r"(?s)The static field 'factor' .*`factor: jax.Arr"):
        wrapper_checks(case_of(StaticArray))["trainable-fields"]()
