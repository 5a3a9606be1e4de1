"""The conformance kit is fair: correct adapters of unusual layers raise no false alarm."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tests.core.data_adapters import Tied
from tests.core.good_adapter import Good, float_of

from jno.lora import LowRankForm
from jno_lora_testing import WrapperCase, run_checks


class Layer(eqx.Module):
    """A layer with a random matrix, which its `call` uses."""

    weight: jax.Array
    call: Callable = eqx.field(static=True)

    def __call__(self, *inputs):
        return self.call(self.weight, *inputs)


def scaled(W, x):
    return 0.5 * (W @ x) + 1


def with_gains(W, x):
    return jnp.arange(1, 1 + len(W), dtype=x.dtype) * (W @ x)


def by_the_direction(W, x):
    return W @ (x / jnp.linalg.norm(x))


def noisy(W, x, key):
    y = W @ x
    return y + jax.random.normal(key, y.shape, y.dtype)


def decided(W, x):
    y = W @ x
    return jnp.sign(y) * 10 + y


def float32_only(W, x):
    if x.dtype.itemsize == 2:
        raise TypeError("no half precision")
    return W @ x


def calling_back(W, x):
    jax.debug.callback(lambda y: None, x)
    return W @ x


def from_a_strict_table(W, index):
    return W[eqx.error_if(index, index < 0, "a negative index")]


def for_its_input_alone(W, x):
    """A stand-in for a layer with strict preconditions."""
    y = eqx.error_if(x, jnp.abs(jnp.linalg.norm(x) - 1) > 1e-4, "no unit")
    return W @ jnp.where(jnp.all(x <= 0), jnp.nan, y)


class CallsMerged(Good):
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

    def low_rank_form(self):
        return LowRankForm(self.lora_A, (self.alpha / self.rank) * self.lora_B)

    def merge(self):
        A, B, *_ = self.low_rank_form()
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


def results_of(layer, *checks, wrapper=CallsMerged, inputs=vector, shape=(4, 6), **settings):
    """The result of each check of a case with this layer, or this call of a layer."""

    def make(key):
        if isinstance(layer, type):
            return layer(6, 4, key=key)
        return Layer(jax.random.normal(key, shape), layer)

    case = WrapperCase(wrapper, make, inputs, **settings)
    return {result.check: result for result in run_checks(case, checks)}


def passes(layer, *checks, **settings):
    """No check fails, and each check is applicable."""
    results = results_of(layer, *checks, **settings).values()
    return [result for result in results if result.error or result.not_applicable] == []


class PassesStateOn(CallsMerged):
    """Its layer may take a state, which `__call__` passes on."""

    def is_stateful(self):
        return True


class MergesInNumPy(CallsMerged):
    def merge(self):
        weight = super().merge().weight
        is_traced = isinstance(weight, jax.core.Tracer)
        return eqx.tree_at(lambda m: m.weight, self.base, weight if is_traced else np.array(weight))


def index(key):
    return (jax.random.randint(key, (), 0, 6),)


IN_OUT = {"wrapper": InOutAdapter, "shape": (6, 4)}


@pytest.mark.parametrize(
    ("layer", "check", "settings"),
    [
        # The matrix of a layer with gains is the matrix that the update is added to.
        (scaled, "matrix", {}),
        (with_gains, "matrix", {}),
        # A fixed start with structure is not an ignored key, and `alpha` need not be an argument.
        (scaled, "key-forms", {"wrapper": LearnedKnots}),
        (scaled, "answers", {"wrapper": LearnedKnots}),
        # A state may be among any arguments.
        (scaled, "answers", {"wrapper": PassesStateOn}),
        # Special inputs that the layer refuses are left out.
        (from_a_strict_table, "special-inputs", {"inputs": index, **IN_OUT}),
        # Effects of the layer are no effects of the adapter.
        (calling_back, "purity", {}),
        (scaled, "purity", {"wrapper": MergesInNumPy}),
    ],
)
def test_a_correct_adapter_of_an_unusual_layer_passes(layer, check, settings):
    assert passes(layer, check, **settings)


def unit_vector(key):
    (x,) = vector(key)
    return (x / jnp.linalg.norm(x),)


NO_HALF = "the layer itself cannot compute in half precision"


@pytest.mark.parametrize(
    ("layer", "check", "settings", "reason"),
    [
        (lambda W, x: jax.nn.relu(W @ x), "matrix", {}, "more than a matrix"),
        (by_the_direction, "matrix", {}, "more than a matrix"),
        # No layout of the weight is assumed.
        (lambda W, x: x @ W, "low-rank-form", IN_OUT, "the adapter says no `matrix`"),
        (float32_only, "trained-in-half-precision", {}, NO_HALF),
        (float32_only, "identity-in-half-precision", {}, NO_HALF),
        (
            for_its_input_alone,
            "special-inputs",
            {"inputs": unit_vector},
            "the layer gives no finite outputs for special inputs",
        ),
    ],
)
def test_a_check_that_the_layer_does_not_allow_is_not_applicable(layer, check, settings, reason):
    result = results_of(layer, check, **settings)[check]
    assert result.error is None and reason in f"{result.not_applicable}"


def vector_and_key(key):
    return (*vector(key), key)


@pytest.mark.parametrize(
    ("layer", "check", "settings"),
    [
        # Noise and decisions of the layer are no faults of the adapter.
        (noisy, "trained-in-half-precision", {"inputs": vector_and_key}),
        (decided, "trained-in-half-precision", {"shape": (200, 6)}),
        (float32_only, "output-dtype", {}),
    ],
)
def test_half_precision_is_compared_as_far_as_the_layer_has_it(layer, check, settings):
    assert results_of(layer, check, **settings)[check].error is None


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
    [(Tied, {"inputs": rows, "call": of_rows}), (RefusesOddOutputs, {}), (ClaimsEvenOutputs, {})],
)
def test_a_wider_layer_that_the_adapter_or_the_call_does_not_take_is_left_out(wrapper, settings):
    assert passes(eqx.nn.Linear, "shared-arrays", wrapper=wrapper, **settings)
