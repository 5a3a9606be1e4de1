"""Adapters of the documentation and of the core's tests pass the whole kit."""

import pathlib
import re

import equinox as eqx
import jax
from tests.core.test_options import OPTIONS, Blocks

from jno.lora.testing import WrapperCase, run_checks, standard_cases


def test_the_kit_passes_with_such_an_option():
    case = WrapperCase(
        Blocks,
        base=lambda key: eqx.nn.Linear(4, 6, key=key),
        inputs=lambda key: (jax.random.normal(key, (4,)),),
        options=OPTIONS,
        parameters=3,
    )
    assert [f"{result.error}" for result in run_checks(case) if result.error] == []


def test_the_adapter_that_extending_begins_with_passes_the_kit():
    text = (pathlib.Path(__file__).parents[2] / "docs" / "extending.md").read_text()
    scope = {"__name__": "extending"}
    exec(re.search(r"```python\n(.*?)```", text, re.DOTALL)[1], scope)
    cases = standard_cases(scope["Shift"])
    assert cases
    assert [result.error for case in cases for result in run_checks(case) if result.error] == []
