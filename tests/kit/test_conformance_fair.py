"""The conformance kit is fair: correct adapters of unusual layers raise no false alarm."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tests.core.data_adapters import Tied

from jno.lora import SelectionError
from jno.lora.testing import WrapperCase, parametrize_with_checks, run_checks
from jno_lora_testing import _check

from .broken_adapters import Good, case_of, float_of


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


class NoisyLinear(Layer):
    def __call__(self, x, key):
        y = self.weight @ x
        return y + jax.random.normal(key, y.shape, y.dtype)


class Router(Layer):
    """A layer with a hard decision for each of many outputs."""

    def __init__(self, inputs, outputs, *, key):
        super().__init__(inputs, 50 * outputs, key=key)

    def __call__(self, x):
        y = self.weight @ x
        return jnp.sign(y) * 10 + y


class Float32Linear(Layer):
    def __call__(self, x):
        if x.dtype != jnp.float32:
            raise TypeError("float32 alone")
        return self.weight @ x


class CallsBack(Layer):
    def __call__(self, x):
        jax.debug.callback(lambda y: None, x)
        return self.weight @ x


class StrictTable(InOutLinear):
    """A table that refuses indices from the end."""

    def __call__(self, index):
        return self.weight[eqx.error_if(index, index < 0, "a negative index")]


class RefusesAll(Layer):
    """A layer for its input alone, as a stand-in for a layer with strict preconditions."""

    def __call__(self, x):
        return self.weight @ eqx.error_if(x, jnp.abs(jnp.linalg.norm(x) - 1) > 1e-4, "no unit")


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


def vector_and_key(key):
    return (*vector(key), key)


@pytest.mark.parametrize(("layer", "inputs"), [(NoisyLinear, vector_and_key), (Router, vector)])
def test_noise_and_decisions_of_the_layer_are_no_faults_in_half_precision(layer, inputs):
    assert results_of(layer, "trained-in-half-precision", inputs=inputs).popitem()[1].error is None


def test_a_layer_without_half_precision_is_not_compared_in_half_precision():
    reason = reason_not_applicable(Float32Linear, "trained-in-half-precision")
    assert reason == "the layer itself cannot compute in half precision"


def index(key):
    return (jax.random.randint(key, (), 0, 6),)


def test_special_inputs_that_the_layer_refuses_are_left_out():
    assert passes(StrictTable, "special-inputs", inputs=index, wrapper=InOutAdapter)


def unit_vector(key):
    (x,) = vector(key)
    return (x / jnp.linalg.norm(x),)


def test_nothing_is_said_of_special_inputs_if_the_layer_refuses_all():
    class NormalisedInput(RefusesAll):
        def __call__(self, x):
            return super().__call__(jnp.where(jnp.all(x <= 0), jnp.nan, x))

    reason = reason_not_applicable(NormalisedInput, "special-inputs", inputs=unit_vector)
    assert reason == "the layer gives no finite outputs for special inputs"


def test_no_partition_specs_are_not_checked():
    reason = reason_not_applicable(ScaledLinear, "partition-specs")
    assert reason == "the adapter gives no `partition_specs`"


def test_effects_of_the_layer_are_no_effects_of_the_adapter():
    assert passes(CallsBack, "purity")


class MergesInNumPy(CallsMerged):
    def merge(self):
        weight = super().merge().weight
        is_traced = isinstance(weight, jax.core.Tracer)
        return eqx.tree_at(lambda m: m.weight, self.base, weight if is_traced else np.array(weight))


def test_merges_to_numpy_arrays_are_compared():
    assert passes(ScaledLinear, "purity", wrapper=MergesInNumPy)


class RefusesOddOutputs(Tied):
    def __init__(self, base, rank, alpha, *, key):
        if len(base.weight) % 2:
            raise ValueError("blocks of two outputs")
        super().__init__(base, rank, alpha, key=key)


class ClaimsEvenOutputs(Tied):
    @classmethod
    def applies_to(cls, leaf):
        return Tied.applies_to(leaf) and len(leaf.weight) % 2 == 0

    def __init__(self, base, rank, alpha, *, key):
        assert len(base.weight) % 2 == 0
        super().__init__(base, rank, alpha, key=key)


def rows(key):
    return (jax.random.normal(key, (5, 6)),)


def of_rows(layer, x):
    return jax.vmap(layer)(x)


@pytest.mark.parametrize(
    ("wrapper", "settings"),
    [
        (Tied, {"inputs": rows, "call": of_rows}),
        (RefusesOddOutputs, {}),
        (ClaimsEvenOutputs, {}),
    ],
)
def test_a_wider_layer_that_the_adapter_or_the_call_does_not_take_is_left_out(wrapper, settings):
    assert passes(eqx.nn.Linear, "shared-arrays", wrapper=wrapper, **settings)


def linear_case_for(*checks):
    case = case_of(Good)
    return WrapperCase(Good, case.base, case.inputs, checks=checks)


def test_a_command_that_runs_no_check_fails():
    with pytest.raises(SelectionError, match=r"No check ran: .* Good match none of jit"):
        _check.run([linear_case_for("matrix", "law")], ("jit",), None)


def test_an_expected_failure_must_name_a_check_that_the_case_runs():
    for name in ("jit", "Good:jit"):
        with pytest.raises(ValueError, match="not a check that these cases run"):
            parametrize_with_checks([linear_case_for("law")], {name: "a reason"})
