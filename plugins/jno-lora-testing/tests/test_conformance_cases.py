"""Statements of a case about its adapter: the law, the ranks, the options; the standard cases."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from kit_cases import case_of
from tests.core.good_adapter import Good
from tests.core.test_options import OPTIONS, Blocks as OptionBlocks
from tests.core.toys import ToyScale
from wrong_adapters._bases import ComplexLoRA, LoRA, is_exactly
from wrong_adapters.maths import NeedsABias

from jno.lora.extending import compute_dtype
from jno_lora_testing import (
    ConformanceError,
    WrapperCase,
    run_checks,
    standard_cases,
    standard_layers,
    wrapper_checks,
)


def law(adapter):
    A, B = (np.asarray(factor, np.float64) for factor in (adapter.lora_A, adapter.lora_B))
    return np.asarray(adapter.base.weight) + adapter.alpha / adapter.rank * (B @ A)


def test_a_law_may_give_several_attributes_and_has_to_give_their_shapes():
    bias = lambda adapter: {"weight": law(adapter), "bias": np.asarray(adapter.base.bias)}  # noqa: E731
    assert wrapper_checks(case_of(Good, law=bias))["law"]() is None
    for wrong in (lambda a: law(a).T, lambda a: {"bias": 1 + np.asarray(a.base.bias)}):
        with pytest.raises(ConformanceError, match="and the law differ"):
            wrapper_checks(case_of(Good, law=wrong))["law"]()


def test_a_constructor_may_refuse_a_rank_with_a_message():
    class Refuses(Good):
        def __init__(self, base, rank, alpha, *, key):
            if rank > 4:
                raise ValueError(f"the rank must be 4 at most, but is {rank}")
            super().__init__(base, rank, alpha, key=key)

    assert wrapper_checks(case_of(Refuses))["ranks"]() is None


class Blocks(ToyScale):
    def __init__(self, base, rank, alpha, *, key, blocks=1):
        self.base, self.rank, self.alpha = base, rank, alpha
        self.gain, self.constant = jnp.zeros(blocks), jnp.zeros(())

    def __call__(self, x):
        return self.merge()(x)

    def merge(self):
        W = self.base.weight
        return eqx.tree_at(lambda m: m.weight, self.base, W * (1 + self.gain.sum().astype(W.dtype)))


def test_options_that_cannot_be_loaded_lead_to_options_of():
    case = case_of(Blocks, options={"blocks": 3}, parameters=None)
    with pytest.raises(ConformanceError, match="the saved adapter cannot be loaded") as error:
        wrapper_checks(case)["state-round-trip"]()
    assert "With the options {'blocks': 3}" in str(error.value)
    assert "expected shape (1,), got (3,)" in str(error.value)
    assert "let `options_of(state)` give the options" in str(error.value)


def test_an_adapter_with_options_of_passes():
    case = case_of(
        OptionBlocks,
        base=lambda key: eqx.nn.Linear(4, 6, key=key),
        inputs=lambda key: (jax.random.normal(key, (4,)),),
        options=OPTIONS,
        parameters=3,
    )
    assert [f"{result.error}" for result in run_checks(case) if result.error] == []


def test_outputs_of_a_loaded_adapter_come_back_to_rounding():
    class Residual(Good):
        """Its base is computed again when it is loaded, and rounded otherwise."""

        @classmethod
        def from_state(cls, base, state, rank, alpha):
            shifted = eqx.tree_at(lambda m: m.weight, base, base.weight * jnp.float32(1 + 2e-7))
            return super().from_state(shifted, state, rank, alpha)

    assert wrapper_checks(case_of(Residual))["state-round-trip"]() is None


def test_a_case_makes_each_object_once_for_each_dtype_seed_and_precision():
    case = case_of(Good)
    assert str(case) == "Good" and str(dataclasses.replace(case, name="other")) == "other"
    assert case.make_base() is case.make_base() and case.make() is case.make()
    assert case.make_base(seed=5) is not case.make_base(seed=6)
    assert case.make(jnp.bfloat16).base.weight.dtype == jnp.bfloat16
    doubles = WrapperCase(Good, case.base, lambda key: (jax.random.normal(key, (6,), float),))
    (single,) = doubles.make_inputs()
    with jax.enable_x64(True):
        (double,) = doubles.make_inputs()
    assert (single.dtype, double.dtype) == (jnp.float32, jnp.float64)


class Mixing(eqx.Module):
    """A complex matrix, and a real bias that is added to the real part."""

    weight: jax.Array
    bias: jax.Array

    def __init__(self, inputs, outputs, *, key):
        # Promotes, which is the layer's affair.
        self.weight = jax.random.normal(key, (outputs, inputs)) * jnp.complex64(1 + 1j)
        self.bias = jnp.ones(outputs)

    def __call__(self, x):
        y = self.weight @ x
        return y + self.bias.astype(y.dtype)


class ComplexUpdate(ComplexLoRA):
    @classmethod
    def applies_to(cls, leaf):
        return is_exactly(leaf, Mixing, 2)

    def added(self, x):
        return self.product(x)


@pytest.mark.slow
def test_a_correct_adapter_of_a_complex_layer_passes():
    case = WrapperCase(
        ComplexUpdate,
        base=lambda key: Mixing(6, 4, key=key),
        inputs=lambda key: (jax.random.normal(key, (6,), jnp.complex64),),
    )
    assert case.make_base(jnp.bfloat16).weight.dtype == jnp.complex64
    assert case.make_base(jnp.bfloat16).bias.dtype == jnp.bfloat16
    assert [str(r.error) for r in run_checks(case) if r.error is not None] == []


def test_the_dtype_to_compute_in_is_never_a_half_precision():
    for dtype in (jnp.bfloat16, jnp.float16, np.float32, np.float64):
        assert compute_dtype(np.ones(3, dtype)) == jnp.float32
    assert compute_dtype(np.ones(3, np.complex64)) == jnp.complex64
    with jax.enable_x64(True):
        assert compute_dtype(jnp.ones(3, jnp.float64)) == jnp.float64


# --- standard cases


def test_three_linear_layers_show_what_one_hides():
    first, *further = standard_cases(
        Good, law=law, parameters=lambda layer, rank: rank * sum(layer.weight.shape)
    )
    facts = {}
    for case in (first, *further):
        base = case.make_base()
        form = base.in_features, base.out_features, base.use_bias
        facts[str(case)] = (*form, case.rank, case.alpha, case.parameters)
    assert facts == {
        "Good-Linear": (6, 4, True, 2, 4.0, 20),
        "Good-Linear-widening": (3, 5, False, 2, 4.0, 16),
        "Good-Linear-square": (4, 4, True, 3, 3.0, 24),
    }
    assert len(wrapper_checks(first)) > 30
    assert {len(wrapper_checks(case)) for case in further} == {5}
    results = [result for case in further for result in run_checks(case)]
    assert [result.not_applicable or result.error for result in results] == 10 * [None]


class ScalesByHalfOfAlpha(LoRA):
    def scale(self):
        return self.alpha / 2  # the first case's rank


@pytest.mark.parametrize(
    ("wrapper", "noticed"), [(ScalesByHalfOfAlpha, "square"), (NeedsABias, "widening")]
)
def test_a_mistake_that_the_first_linear_layer_hides_shows_on_a_further_one(wrapper, noticed):
    first, *further = standard_cases(wrapper, law=law)
    only = ["identity-at-init", "adapter-acts", "merge-equals-call", "law"]
    assert [r.error for r in run_checks(first, only) if r.error] == []
    failed = {r.case for case in further for r in run_checks(case) if r.error}
    assert f"{wrapper.__name__}-Linear-{noticed}" in failed


def test_further_cases_are_of_layers_that_the_adapter_claims():
    class Biased(Good):
        @classmethod
        def applies_to(cls, leaf):
            return Good.applies_to(leaf) and leaf.bias is not None

    assert [str(case) for case in standard_cases(Biased)] == [
        "Biased-Linear",
        "Biased-Linear-square",
    ]
    assert standard_cases(Good, ["Conv1d"]) == []


class EveryLayer(Good):
    @classmethod
    def applies_to(cls, leaf):
        return isinstance(leaf, eqx.Module)


def test_further_layers_have_the_arguments_that_adapters_forget():
    cases = {str(case).removeprefix("EveryLayer-"): case for case in standard_cases(EveryLayer)}
    assert len([name for name in cases if "-" not in name]) == len(standard_layers())
    for name in ("Conv1d-dilated", "ConvTranspose1d-dilated"):
        base = cases[name].make_base()
        assert (base.dilation, base.groups, base.use_bias) == ((2,), 2, False)
    assert cases["Conv2d-reflecting"].make_base().padding_mode == "REFLECT"
    assert [int(i) for i in cases["Embedding-ends"].make_inputs()] == [0, 8, -1, -9]
    attention = cases["MultiheadAttention-masked"]
    with_mask = attention.run(attention.make_base())
    q, k, v, mask, key = attention.make_inputs()
    assert not jnp.allclose(with_mask, attention.make_base()(q, k, v, key=key))
    assert not jnp.allclose(with_mask, attention.make_base()(q, k, v, mask, inference=True))
    undropped = cases["MultiheadAttention-inference"]
    undropped.run(undropped.make_base())  # would raise for want of a key
