"""Derivatives by the input are checked as far as the layer itself has them."""

import jax
import jax.numpy as jnp
import pytest
from kit_cases import case_of
from tests.core.good_adapter import Good
from wrong_adapters.transformations import HidesItsProduct, SetsAnOutput

from jno_lora_testing import ConformanceError, run_checks, wrapper_checks

DERIVATIVES = ("input-derivatives", "input-jet", "residual-gradients")


def test_an_input_of_integers_has_no_derivatives_to_check():
    case = case_of(Good, inputs=lambda key: (jnp.arange(6),))
    checks = wrapper_checks(case)
    assert {checks[name]() for name in DERIVATIVES} == {"no input of the layer is a floating array"}


@pytest.mark.parametrize(
    ("after", "reasons"),
    [
        # Taylor mode ignores the rule of `relu` and fails.
        (jax.nn.relu, [None, "`jet` cannot follow the layer itself", None]),
        # A loop whose length is not known has derivatives in forward mode only.
        (
            lambda y: jax.lax.while_loop(lambda y: y[0] < 9, lambda y: 2 * y + 1, y),
            [
                None,
                "`jet` cannot follow the layer itself",
                "`hessian` cannot differentiate the layer itself",
            ],
        ),
        (
            lambda y: jax.pure_callback(lambda y: y, y, y),
            [
                "the layer itself cannot be differentiated",
                "`jet` cannot follow the layer itself",
                "`hessian` cannot differentiate the layer itself",
            ],
        ),
    ],
)
def test_only_derivatives_that_the_layer_itself_has_are_asked_for(after, reasons):
    case = case_of(Good, call=lambda layer, x: after(layer(x)))
    checks = wrapper_checks(case)
    assert [checks[name]() for name in DERIVATIVES] == reasons


def test_an_operation_that_jet_itself_cannot_follow_is_advice_and_named_as_a_gap_of_jax():
    checks = wrapper_checks(case_of(SetsAnOutput))
    assert checks["input-jet"]() == "`jet` has a gap, which `jet-rules` names"
    assert checks["input-derivatives"]() is None
    with pytest.raises(ConformanceError, match=r"itself fails .*: KeyError: scatter\n") as failure:
        checks["jet-rules"]()
    assert "this is a gap in JAX" in str(failure.value)


class Clips(Good):
    def __call__(self, x):
        return jnp.clip(Good.__call__(self, x), -100, 100)


def test_a_clip_fails_nothing_that_is_required():
    # Whether `jet` can follow it depends on the version of JAX.
    assert [r.error for r in run_checks(case_of(Clips), DERIVATIVES)] == [None, None, None]


def test_a_rule_of_the_author_that_jet_ignores_is_not_a_gap_of_jax():
    checks = wrapper_checks(case_of(HidesItsProduct))
    assert checks["jet-rules"]() is None
    with pytest.raises(ConformanceError):
        checks["input-jet"]()
