"""The conformance kit is fair: correct adapters of unusual layers raise no false alarm."""

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest

from jno.lora.testing import WrapperCase, run_checks

from .broken_adapters import Good, float_of


class Layer(eqx.Module):
    """A layer with a random matrix."""

    weight: jax.Array

    def __init__(self, inputs, outputs, *, key):
        self.weight = jax.random.normal(key, (outputs, inputs))


class ScaledLinear(Layer):
    def __call__(self, x):
        return 0.5 * (self.weight @ x) + 1


class GainLinear(Layer):
    def __call__(self, x):
        return jnp.arange(1, 1 + len(self.weight), dtype=x.dtype) * (self.weight @ x)


class ReluLinear(Layer):
    def __call__(self, x):
        return jax.nn.relu(self.weight @ x)


class CosineLinear(Layer):
    def __call__(self, x):
        return self.weight @ (x / jnp.linalg.norm(x))


class InOutLinear(Layer):
    """A layer whose weight is `(in, out)`."""

    def __init__(self, inputs, outputs, *, key):
        self.weight = jax.random.normal(key, (inputs, outputs))

    def __call__(self, x):
        return x @ self.weight


class CallsMerged(Good):
    """LoRA of any of these layers."""

    base: eqx.Module

    @classmethod
    def applies_to(cls, leaf):
        return isinstance(leaf, Layer) and eqx.is_inexact_array(leaf.weight)

    @classmethod
    def matrix(cls, layer):
        return float_of(layer.weight)

    def __call__(self, *inputs):
        return self.merge()(*inputs)


class InOutAdapter(CallsMerged):
    """LoRA of an `(in, out)` weight, which leaves `matrix` out."""

    @classmethod
    def matrix(cls, layer):
        return None

    def __init__(self, base, rank, alpha, *, key):
        self.base, self.rank, self.alpha = base, rank, alpha
        inputs, outputs = base.weight.shape
        self.lora_A = jax.random.normal(key, (rank, inputs))
        self.lora_B = jnp.zeros((outputs, rank))

    def low_rank_update(self):
        return self.lora_A, (self.alpha / self.rank) * self.lora_B

    def merge(self):
        A, B = self.low_rank_update()
        weight = float_of(self.base.weight) + (B @ A).T.astype(jnp.float32)
        return eqx.tree_at(lambda m: m.weight, self.base, weight.astype(self.base.weight.dtype))


class LearnedKnots(CallsMerged):
    """An update with fixed knots and without `alpha` in the constructor, which has its scale."""

    adapter_fields = ("lora_A", "lora_B")
    alpha = 0.5  # not an argument

    def __init__(self, base, rank, *, key):
        self.base, self.rank = base, rank
        outputs, inputs = base.weight.shape
        self.lora_A = jnp.broadcast_to(jnp.geomspace(0.5, 8, inputs), (rank, inputs))
        self.lora_A = self.lora_A + 0.1 * jnp.arange(rank, dtype=jnp.float32)[:, None]
        self.lora_B = jnp.zeros((outputs, rank))


def vector(key):
    return (jax.random.normal(key, (6,)),)


def results_of(layer, *checks, wrapper=CallsMerged, inputs=vector, **settings):
    """The result of each check of a case with this layer, by the check."""
    case = WrapperCase(wrapper, lambda key: layer(6, 4, key=key), inputs, **settings)
    return {result.check: result for result in run_checks(case, checks)}


def passes(layer, *checks, **settings):
    """No check fails, and each check is applicable."""
    results = results_of(layer, *checks, **settings).values()
    return [result for result in results if result.error or result.not_applicable] == []


def reason_not_applicable(layer, check, **settings):
    """Why the check is not applicable, if it does not fail."""
    result = results_of(layer, check, **settings)[check]
    assert result.error is None
    return f"{result.not_applicable}"


@pytest.mark.parametrize("layer", [ScaledLinear, GainLinear])
def test_the_matrix_of_a_layer_with_gains_is_the_matrix_that_the_update_is_added_to(layer):
    assert passes(layer, "matrix")


@pytest.mark.parametrize("layer", [ReluLinear, CosineLinear])
def test_the_matrix_of_a_layer_that_is_not_linear_is_not_compared(layer):
    assert "more than a matrix" in reason_not_applicable(layer, "matrix")


def test_without_matrix_no_layout_of_the_weight_is_assumed():
    reason = reason_not_applicable(InOutLinear, "low-rank-update", wrapper=InOutAdapter)
    assert reason == "the adapter says no `matrix`"


def test_a_fixed_start_with_structure_is_not_an_ignored_key():
    assert passes(ScaledLinear, "key-forms", wrapper=LearnedKnots)


def test_alpha_is_compared_only_if_the_constructor_takes_alpha():
    assert passes(ScaledLinear, "answers", wrapper=LearnedKnots)


class PassesStateOn(CallsMerged):
    """Its layer may take a state, which `__call__` passes on."""

    def is_stateful(self):
        return True


def test_a_state_may_be_among_any_arguments():
    assert passes(ScaledLinear, "answers", wrapper=PassesStateOn)
