"""For every check of the conformance kit an adapter that breaks it, in one point."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.experimental import io_callback

from jno.lora import LoRAWrapper
from jno.lora.testing import WrapperCase


def update(wrapper):
    return (wrapper.alpha / wrapper.rank) * (wrapper.lora_B @ wrapper.lora_A)


def float_of(weight):
    return weight.astype(jnp.float64 if weight.dtype == jnp.float64 else jnp.float32)


class Good(LoRAWrapper):
    """A correct adapter, which each broken one below changes in one point."""

    adapter_fields = ("lora_A", "lora_B")
    base: eqx.nn.Linear
    lora_A: jax.Array
    lora_B: jax.Array
    rank: int = eqx.field(static=True)
    alpha: float = eqx.field(static=True)

    @classmethod
    def applies_to(cls, leaf):
        return type(leaf) is eqx.nn.Linear and eqx.is_inexact_array(leaf.weight)

    @classmethod
    def stack_ndim(cls, leaf):
        return leaf.weight.ndim - 2

    def __init__(self, base, rank, alpha, *, key):
        self.base, self.rank, self.alpha = base, rank, alpha
        W = float_of(base.weight)
        self.lora_A = jax.random.normal(key, (rank, W.shape[1]), W.dtype)
        self.lora_B = jnp.zeros((W.shape[0], rank), W.dtype)

    def __call__(self, x):
        A, B = self.lora_A.astype(x.dtype), self.lora_B.astype(x.dtype)
        return self.base(x) + (self.alpha / self.rank) * (B @ (A @ x))

    def merge(self):
        W = float_of(self.base.weight) + update(self)
        return eqx.tree_at(lambda m: m.weight, self.base, W.astype(self.base.weight.dtype))


class MisspeltField(Good):
    adapter_fields = ("lora_A", "lora_b")


class Raises(Good):
    @classmethod
    def applies_to(cls, leaf):
        return leaf.weight.ndim >= 2 and type(leaf) is eqx.nn.Linear


class ClaimsALayerWithoutArrays(Good):
    @classmethod
    def applies_to(cls, leaf):
        return type(leaf) is eqx.nn.Linear


class Greedy(Good):
    @classmethod
    def applies_to(cls, leaf):
        weight = getattr(leaf, "weight", None)
        return (
            isinstance(leaf, eqx.Module)
            and not isinstance(leaf, LoRAWrapper)
            and (eqx.is_inexact_array(weight) and weight.ndim >= 2)
        )


class KeepsItsKey(Good):
    own_key: jax.Array

    def __init__(self, base, rank, alpha, *, key):
        self.base, self.rank, self.alpha = base, rank, alpha
        W = float_of(base.weight)
        self.lora_A = jax.random.normal(key, (rank, W.shape[1]), W.dtype)
        self.lora_B = jnp.zeros((W.shape[0], rank), W.dtype)
        self.own_key = key


class IntegerField(Good):
    adapter_fields = ("lora_A", "lora_B", "count")
    count: jax.Array

    def __init__(self, base, rank, alpha, *, key):
        self.base, self.rank, self.alpha = base, rank, alpha
        W = float_of(base.weight)
        self.lora_A = jax.random.normal(key, (rank, W.shape[1]), W.dtype)
        self.lora_B = jnp.zeros((W.shape[0], rank), W.dtype)
        self.count = jnp.zeros((), jnp.int32)


class TooManyParameters(Good):
    extra: jax.Array
    adapter_fields = ("lora_A", "lora_B", "extra")

    def __init__(self, base, rank, alpha, *, key):
        self.base, self.rank, self.alpha = base, rank, alpha
        W = float_of(base.weight)
        self.lora_A = jax.random.normal(key, (rank, W.shape[1]), W.dtype)
        self.lora_B = jnp.zeros((W.shape[0], rank), W.dtype)
        self.extra = jnp.zeros(W.shape[0], W.dtype)

    def __call__(self, x):
        A, B = self.lora_A.astype(x.dtype), self.lora_B.astype(x.dtype)
        low_rank = (self.alpha / self.rank) * (B @ (A @ x))
        return self.base(x) + low_rank + self.extra.astype(x.dtype) * jnp.sum(x)

    def merge(self):
        W = float_of(self.base.weight) + update(self) + self.extra[:, None]
        return eqx.tree_at(lambda m: m.weight, self.base, W.astype(self.base.weight.dtype))


class SharedBuffer(Good):
    first_A: jax.Array

    def __init__(self, base, rank, alpha, *, key):
        self.base, self.rank, self.alpha = base, rank, alpha
        W = float_of(base.weight)
        self.lora_A = jax.random.normal(key, (rank, W.shape[1]), W.dtype)
        self.lora_B = jnp.zeros((W.shape[0], rank), W.dtype)
        self.first_A = self.lora_A


class DoesNotReadThrough(Good):
    def __getattr__(self, name):
        return getattr(self.__dict__["base"], name)


class ForgetsState(Good):
    def state(self):
        return {"lora_A": self.lora_A}

    @classmethod
    def from_state(cls, base, state, rank, alpha):
        fresh = cls(base, rank, alpha, key=jax.random.key(0))
        return eqx.tree_at(lambda w: w.lora_A, fresh, state["lora_A"])


class StartsElsewhere(Good):
    def __init__(self, base, rank, alpha, *, key):
        self.base, self.rank, self.alpha = base, rank, alpha
        W = float_of(base.weight)
        self.lora_A = jax.random.normal(key, (rank, W.shape[1]), W.dtype)
        self.lora_B = jnp.full((W.shape[0], rank), 0.01, W.dtype)


class LosesHalfPrecision(Good):
    """Goes through a type with eight bits where the layer has few bits itself."""

    def __call__(self, x):
        if x.dtype.itemsize == 2:
            x = (x * 0.9).astype(x.dtype) * jnp.asarray(1.25, x.dtype)
        return Good.__call__(self, x)


class DoesNothing(Good):
    def __call__(self, x):
        return self.base(x) + 0 * jnp.sum(self.lora_A).astype(x.dtype)

    def merge(self):
        return self.base


class ForgetsTheScale(Good):
    def merge(self):
        W = float_of(self.base.weight) + self.lora_B @ self.lora_A
        return eqx.tree_at(lambda m: m.weight, self.base, W.astype(self.base.weight.dtype))


class MergesInAnotherDtype(Good):
    def merge(self):
        W = float_of(self.base.weight) + update(self)
        return eqx.tree_at(lambda m: m.weight, self.base, W)


class SpoilsItsBase(Good):
    def __init__(self, base, rank, alpha, *, key):
        W = float_of(base.weight)
        self.lora_A = jnp.ones((rank, W.shape[1]), W.dtype)
        self.lora_B = jax.random.normal(key, (W.shape[0], rank), W.dtype)
        self.rank, self.alpha = rank, alpha
        residual = W - (alpha / rank) * (self.lora_B @ self.lora_A)
        self.base = eqx.tree_at(lambda m: m.weight, base, residual.astype(base.weight.dtype))

    @classmethod
    def from_state(cls, base, state, rank, alpha):
        fresh = cls(base, rank, alpha, key=jax.random.key(3))
        return eqx.tree_at(
            lambda w: (w.lora_A, w.lora_B), fresh, (state["lora_A"], state["lora_B"])
        )


class WidensTheOutput(Good):
    def __call__(self, x):
        y = Good.__call__(self, x)
        return y.astype(jnp.float32) if y.dtype.itemsize == 2 else y


class HalfPrecisionAdapter(Good):
    def __init__(self, base, rank, alpha, *, key):
        self.base, self.rank, self.alpha = base, rank, alpha
        W = base.weight
        self.lora_A = jax.random.normal(key, (rank, W.shape[1]), W.dtype)
        self.lora_B = jnp.zeros((W.shape[0], rank), W.dtype)

    def merge(self):
        return eqx.tree_at(lambda m: m.weight, self.base, self.base.weight + update(self))


class SinglePrecisionOnly(Good):
    def __call__(self, x):
        A, B = self.lora_A.astype(jnp.float32), self.lora_B.astype(jnp.float32)
        low_rank = (self.alpha / self.rank) * (B @ (A @ x.astype(jnp.float32)))
        return self.base(x) + low_rank.astype(x.dtype)


class StopsGradient(Good):
    def __call__(self, x):
        A, B = (jax.lax.stop_gradient(a).astype(x.dtype) for a in (self.lora_A, self.lora_B))
        moving = self.lora_B.astype(x.dtype)
        return self.base(x) + (self.alpha / self.rank) * (moving @ (A @ x)) + 0 * jnp.sum(B)

    def merge(self):
        A = jax.lax.stop_gradient(self.lora_A)
        W = float_of(self.base.weight) + (self.alpha / self.rank) * (self.lora_B @ A)
        return eqx.tree_at(lambda m: m.weight, self.base, W.astype(self.base.weight.dtype))


class MergeStopsGradient(Good):
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
    tag: str = eqx.field(static=True)

    def __init__(self, base, rank, alpha, *, key):
        self.base, self.rank, self.alpha = base, rank, alpha
        W = float_of(base.weight)
        self.lora_A = jax.random.normal(key, (rank, W.shape[1]), W.dtype)
        self.lora_B = jnp.zeros((W.shape[0], rank), W.dtype)
        self.tag = "traced" if isinstance(base.weight, jax.core.Tracer) else "eager"


class Solves(Good):
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
    def partition_specs(self):
        return {"lora_A": jax.sharding.PartitionSpec(None, "an axis of another mesh")}


def low_rank(wrapper, x, A, B):
    return (wrapper.alpha / wrapper.rank) * (B.astype(x.dtype) @ (A.astype(x.dtype) @ x))


class StopsItsInput(Good):
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


class ForgetsMixedDerivatives(Good):
    """Right by the input, and right by the arrays, but not by both."""

    def __call__(self, x):
        A, B = self.lora_A, self.lora_B
        constant, stop = jax.lax.stop_gradient(x), jax.lax.stop_gradient
        nothing = low_rank(self, constant, A, B) - low_rank(self, constant, stop(A), stop(B))
        return self.base(x) + low_rank(self, x, stop(A), stop(B)) + nothing


def case_of(wrapper):
    return WrapperCase(
        wrapper,
        base=lambda key: eqx.nn.Linear(6, 4, key=key),
        inputs=lambda key: (jax.random.normal(key, (6,)),),
        parameters=2 * (6 + 4),
    )


DERIVATIVES = {"input-derivatives", "input-jet", "residual-gradients"}

# The broken adapter for each check, and the other checks that cannot but fail with it.
BROKEN = {
    "applies-to-total": (Raises, {"applies-to-not-greedy", "applies-to-needs-arrays"}),
    "applies-to-needs-arrays": (ClaimsALayerWithoutArrays, set()),
    "applies-to-not-greedy": (Greedy, set()),
    "trainable-fields": (IntegerField, {"state-round-trip"}),
    "parameter-count": (TooManyParameters, set()),
    "no-shared-buffers": (SharedBuffer, set()),
    "reads-like-the-layer": (DoesNotReadThrough, set()),
    "state-round-trip": (ForgetsState, set()),
    "identity-at-init": (
        StartsElsewhere,
        {"identity-in-half-precision", "double-precision", "stacked-layers"},
    ),
    "identity-in-half-precision": (LosesHalfPrecision, set()),
    "adapter-acts": (DoesNothing, {"gradients"}),
    "merge-equals-call": (
        ForgetsTheScale,
        {"merge-gradients", "double-precision", "stacked-layers", *DERIVATIVES},
    ),
    "merge-restores-form": (MergesInAnotherDtype, set()),
    "unwrap-restores": (SpoilsItsBase, {"identity-in-half-precision"}),
    "output-dtype": (WidensTheOutput, set()),
    "adapter-dtype": (HalfPrecisionAdapter, set()),
    "double-precision": (SinglePrecisionOnly, set()),
    "gradients": (StopsGradient, set()),
    "merge-gradients": (MergeStopsGradient, {"residual-gradients"}),
    "input-derivatives": (StopsItsInput, DERIVATIVES),
    "input-jet": (HidesItsProduct, set()),
    "residual-gradients": (ForgetsMixedDerivatives, set()),
    "key-forms": (KeepsItsKey, {"state-round-trip"}),
    "jit": (
        LooksAtValues,
        {"constructor-vmap-and-scan", "eval-shape", "stacked-layers", "state-round-trip"},
    ),
    "vmap": (MixesTheBatch, DERIVATIVES),
    "stacked-layers": (ReadsAWrongAxis, set()),
    "eval-shape": (AbstractlyOther, {"state-round-trip"}),
    "checkpoint": (HasSideEffects, set()),
    "constructor-vmap-and-scan": (CallsBackInInit, set()),
    "sharding": (NamesAnotherMesh, set()),
    "no-lapack-in-step": (Solves, {"input-jet"}),
}
