"""Adapters that break a promise under JAX, each in one point; and the one for every check."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.experimental import io_callback
from tests.core.data_adapters import DividesByTheVariance, ReadsTheValue, SeesOtherInputs
from tests.core.gated_adapters import MixesItsDirections, PenaltyPullsOnTheBase

from .broken_adapters import (
    ClaimsALayerWithoutArrays,
    DoesNothing,
    DoesNotReadThrough,
    ForgetsState,
    ForgetsTheScale,
    Good,
    Greedy,
    HalfPrecisionAdapter,
    IntegerField,
    KeepsItsKey,
    LosesHalfPrecision,
    MergesInAnotherDtype,
    Raises,
    SharedBuffer,
    SinglePrecisionOnly,
    SpoilsItsBase,
    StartsElsewhere,
    TooManyParameters,
    WidensTheOutput,
    float_of,
    update,
)


class StopsGradient(Good):
    """The gradient of `A` is stopped."""

    def __call__(self, x):
        A, B = (jax.lax.stop_gradient(a).astype(x.dtype) for a in (self.lora_A, self.lora_B))
        moving = self.lora_B.astype(x.dtype)
        return self.base(x) + (self.alpha / self.rank) * (moving @ (A @ x)) + 0 * jnp.sum(B)

    def merge(self):
        A = jax.lax.stop_gradient(self.lora_A)
        W = float_of(self.base.weight) + (self.alpha / self.rank) * (self.lora_B @ A)
        return eqx.tree_at(lambda m: m.weight, self.base, W.astype(self.base.weight.dtype))


class MergeStopsGradient(Good):
    """`merge` stops the gradient of the update."""

    def merge(self):
        W = float_of(self.base.weight) + jax.lax.stop_gradient(update(self))
        return eqx.tree_at(lambda m: m.weight, self.base, W.astype(self.base.weight.dtype))


class LooksAtValues(Good):
    """Works eagerly, and inside every transformation but `jit`-compiled construction."""

    def __init__(self, base, rank, alpha, *, key):
        self.base, self.rank, self.alpha = base, rank, alpha
        W = float_of(base.weight)
        spread = float(jnp.std(W))
        self.lora_A = spread * jax.random.normal(key, (rank, W.shape[1]), W.dtype)
        self.lora_B = jnp.zeros((W.shape[0], rank), W.dtype)


class MixesTheBatch(Good):
    """Normalises over whatever axis `vmap` is not told about: differs in a batch."""

    def __call__(self, x):
        return Good.__call__(self, x) + _batch_dependent(x).astype(x.dtype)


@jax.custom_batching.custom_vmap
def _batch_dependent(x):
    return 0 * jnp.sum(x)


@_batch_dependent.def_vmap
def _batch_dependent_vmap(axis_size, in_batched, x):
    return jnp.full((axis_size,), 0.5, x.dtype), True


class ReadsAWrongAxis(Good):
    """Its shapes depend on the size of the whole array, so a mapped constructor works, but not
    what the dispatcher does with a stack."""

    @classmethod
    def stack_ndim(cls, leaf):
        return 0


class AbstractlyOther(Good):
    """A static field says whether the weight was traced."""

    tag: str = eqx.field(static=True)

    def __init__(self, base, rank, alpha, *, key):
        self.base, self.rank, self.alpha = base, rank, alpha
        W = float_of(base.weight)
        self.lora_A = jax.random.normal(key, (rank, W.shape[1]), W.dtype)
        self.lora_B = jnp.zeros((W.shape[0], rank), W.dtype)
        self.tag = "traced" if isinstance(base.weight, jax.core.Tracer) else "eager"


class Solves(Good):
    """The call solves a linear system."""

    def __call__(self, x):
        eye = jnp.eye(x.shape[0], dtype=jnp.float32)
        same = jnp.linalg.solve(eye, x.astype(jnp.float32)).astype(x.dtype)
        return Good.__call__(self, x + 0 * same)


class HasSideEffects(Good):
    """Work that reaches outside cannot be replayed."""

    def __call__(self, x):
        return Good.__call__(self, _tick(x))


@jax.custom_jvp
def _tick(x):
    io_callback(lambda: None, None)
    return x


@_tick.defjvp
def _tick_jvp(primals, tangents):
    return _tick(*primals), tangents[0]


class CallsBackInInit(Good):
    """A callback without a rule for batches works under `jit`, but not under `vmap`."""

    @classmethod
    def applies_to(cls, leaf):
        return Good.applies_to(leaf) and leaf.weight.ndim == 2

    def __init__(self, base, rank, alpha, *, key):
        self.base, self.rank, self.alpha = base, rank, alpha
        W = float_of(base.weight)
        shape = jax.ShapeDtypeStruct((rank, W.shape[1]), W.dtype)
        self.lora_A = jax.pure_callback(lambda w: w[:rank] + 1, shape, W)
        self.lora_B = jnp.zeros((W.shape[0], rank), W.dtype)


class NamesAnotherMesh(Good):
    """`partition_specs` names an axis of another mesh."""

    def partition_specs(self):
        return {"lora_A": jax.sharding.PartitionSpec(None, "an axis of another mesh")}


def low_rank(wrapper, x, A, B):
    return (wrapper.alpha / wrapper.rank) * (B.astype(x.dtype) @ (A.astype(x.dtype) @ x))


class TakesRowsOfTheWeight(Good):
    """Takes `rank` rows of the weight, which has four."""

    def __init__(self, base, rank, alpha, *, key):
        self.base, self.rank, self.alpha = base, rank, alpha
        W = float_of(base.weight)
        self.lora_A = jnp.copy(W[:rank])
        self.lora_B = jnp.zeros((W.shape[0], rank), W.dtype)


class StopsItsInput(Good):
    """The call stops the gradient of the input."""

    def __call__(self, x):
        constant = jax.lax.stop_gradient(x)
        return self.base(x) + low_rank(self, constant, self.lora_A, self.lora_B)


class HidesItsProduct(Good):
    """All derivatives are right, but Taylor mode does not see them."""

    def __call__(self, x):
        A, B = self.lora_A.astype(x.dtype), self.lora_B.astype(x.dtype)
        return self.base(x) + (self.alpha / self.rank) * _product(B, _product(A, x))


@jax.custom_jvp
def _product(matrix, x):
    return matrix @ x


@_product.defjvp
def _product_jvp(primals, tangents):
    (matrix, x), (dmatrix, dx) = primals, tangents
    return _product(matrix, x), dmatrix @ x + matrix @ dx


class SetsAnOutput(Good):
    """Right, but JAX's Taylor mode has no rule for a scatter."""

    def __call__(self, x):
        y = Good.__call__(self, x)
        return y.at[0].set(y[0])


class ForgetsMixedDerivatives(Good):
    """Right by the input, and right by the arrays, but not by both."""

    def __call__(self, x):
        A, B = self.lora_A, self.lora_B
        constant, stop = jax.lax.stop_gradient(x), jax.lax.stop_gradient
        nothing = low_rank(self, constant, A, B) - low_rank(self, constant, stop(A), stop(B))
        return self.base(x) + low_rank(self, x, stop(A), stop(B)) + nothing


DERIVATIVES = {"input-derivatives", "input-jet", "residual-gradients"}

# The broken adapter for each check.
BROKEN: dict[str, type] = {
    "applies-to-total": Raises,
    "applies-to-needs-arrays": ClaimsALayerWithoutArrays,
    "applies-to-not-greedy": Greedy,
    "trainable-fields": IntegerField,
    "parameter-count": TooManyParameters,
    "no-shared-buffers": SharedBuffer,
    "reads-like-the-layer": DoesNotReadThrough,
    "state-round-trip": ForgetsState,
    "identity-at-init": StartsElsewhere,
    "identity-in-half-precision": LosesHalfPrecision,
    "adapter-acts": DoesNothing,
    "ranks": TakesRowsOfTheWeight,
    "merge-equals-call": ForgetsTheScale,
    "merge-restores-form": MergesInAnotherDtype,
    "unwrap-restores": SpoilsItsBase,
    "output-dtype": WidensTheOutput,
    "adapter-dtype": HalfPrecisionAdapter,
    "double-precision": SinglePrecisionOnly,
    "gradients": StopsGradient,
    "merge-gradients": MergeStopsGradient,
    "input-derivatives": StopsItsInput,
    "input-jet": HidesItsProduct,
    "jet-rules": SetsAnOutput,
    "residual-gradients": ForgetsMixedDerivatives,
    "key-forms": KeepsItsKey,
    "jit": LooksAtValues,
    "vmap": MixesTheBatch,
    "stacked-layers": ReadsAWrongAxis,
    "eval-shape": AbstractlyOther,
    "checkpoint": HasSideEffects,
    "constructor-vmap-and-scan": CallsBackInInit,
    "sharding": NamesAnotherMesh,
    "poor-statistics": DividesByTheVariance,
    "calibration": SeesOtherInputs,
    "shared-arrays": ReadsTheValue,
    "penalty": PenaltyPullsOnTheBase,
    "rank-gate": MixesItsDirections,
    "no-lapack-in-step": Solves,
}
