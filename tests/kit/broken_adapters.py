"""Adapters that break a promise of their class or of their values, each in one point."""

import equinox as eqx
import jax
import jax.numpy as jnp
from tests.core.good_adapter import Good, float_of, update

from jno.lora import LoRAWrapper, MatrixAdapter
from jno.lora.testing import WrapperCase


def case_of(wrapper):
    return WrapperCase(
        wrapper,
        base=lambda key: eqx.nn.Linear(6, 4, key=key),
        inputs=lambda key: (jax.random.normal(key, (6,)),),
        parameters=2 * (6 + 4 + (MatrixAdapter.of(wrapper).rank_gate is not None)),
    )


class MisspeltField(Good):
    """`adapter_fields` names `lora_b`, which is not a field."""

    adapter_fields = ("lora_A", "lora_b")


class Raises(Good):
    """`applies_to` reads `weight` before it looks at the type."""

    @classmethod
    def applies_to(cls, leaf):
        return leaf.weight.ndim >= 2 and type(leaf) is eqx.nn.Linear


class ClaimsALayerWithoutArrays(Good):
    """`applies_to` claims a layer whose arrays were taken out."""

    @classmethod
    def applies_to(cls, leaf):
        return type(leaf) is eqx.nn.Linear


class Greedy(Good):
    """`applies_to` claims every module with a matrix as its weight."""

    @classmethod
    def applies_to(cls, leaf):
        weight = getattr(leaf, "weight", None)
        return (
            isinstance(leaf, eqx.Module)
            and not isinstance(leaf, LoRAWrapper)
            and (eqx.is_inexact_array(weight) and weight.ndim >= 2)
        )


class KeepsItsKey(Good):
    """A field keeps the random key."""

    own_key: jax.Array

    def __init__(self, base, rank, alpha, *, key):
        self.base, self.rank, self.alpha = base, rank, alpha
        W = float_of(base.weight)
        self.lora_A = jax.random.normal(key, (rank, W.shape[1]), W.dtype)
        self.lora_B = jnp.zeros((W.shape[0], rank), W.dtype)
        self.own_key = key


class IntegerField(Good):
    """`adapter_fields` names a field of integers."""

    adapter_fields = ("lora_A", "lora_B", "count")
    count: jax.Array

    def __init__(self, base, rank, alpha, *, key):
        self.base, self.rank, self.alpha = base, rank, alpha
        W = float_of(base.weight)
        self.lora_A = jax.random.normal(key, (rank, W.shape[1]), W.dtype)
        self.lora_B = jnp.zeros((W.shape[0], rank), W.dtype)
        self.count = jnp.zeros((), jnp.int32)


class TooManyParameters(Good):
    """Trains a vector more than was documented."""

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
    """Two fields hold one array."""

    first_A: jax.Array

    def __init__(self, base, rank, alpha, *, key):
        self.base, self.rank, self.alpha = base, rank, alpha
        W = float_of(base.weight)
        self.lora_A = jax.random.normal(key, (rank, W.shape[1]), W.dtype)
        self.lora_B = jnp.zeros((W.shape[0], rank), W.dtype)
        self.first_A = self.lora_A


class DoesNotReadThrough(Good):
    """`__getattr__` gives the frozen weight."""

    def __getattr__(self, name):
        return getattr(self.__dict__["base"], name)


class ForgetsState(Good):
    """`state` leaves `B` out."""

    def state(self):
        return {"lora_A": self.lora_A}

    @classmethod
    def from_state(cls, base, state, rank, alpha):
        fresh = cls(base, rank, alpha, key=jax.random.key(0))
        return eqx.tree_at(lambda w: w.lora_A, fresh, state["lora_A"])


class StartsElsewhere(Good):
    """`B` starts at 0.01."""

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
    """The trained arrays have no effect."""

    def __call__(self, x):
        return self.base(x) + 0 * jnp.sum(self.lora_A).astype(x.dtype)

    def merge(self):
        return self.base


class ForgetsTheScale(Good):
    """`merge` adds `B A` without the scale."""

    def merge(self):
        W = float_of(self.base.weight) + self.lora_B @ self.lora_A
        return eqx.tree_at(lambda m: m.weight, self.base, W.astype(self.base.weight.dtype))


class MergesInAnotherDtype(Good):
    """`merge` does not cast the weight back."""

    def merge(self):
        W = float_of(self.base.weight) + update(self)
        return eqx.tree_at(lambda m: m.weight, self.base, W)


class SpoilsItsBase(Good):
    """The constructor takes the update out of the weight, and `unwrap` does not put it back."""

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
    """The output of a half-precision layer is float32."""

    def __call__(self, x):
        y = Good.__call__(self, x)
        return y.astype(jnp.float32) if y.dtype.itemsize == 2 else y


class HalfPrecisionAdapter(Good):
    """The trained arrays have the layer's half precision."""

    def __init__(self, base, rank, alpha, *, key):
        self.base, self.rank, self.alpha = base, rank, alpha
        W = base.weight
        self.lora_A = jax.random.normal(key, (rank, W.shape[1]), W.dtype)
        self.lora_B = jnp.zeros((W.shape[0], rank), W.dtype)

    def merge(self):
        return eqx.tree_at(lambda m: m.weight, self.base, self.base.weight + update(self))


class SinglePrecisionOnly(Good):
    """A float64 layer is adapted in float32."""

    def __call__(self, x):
        A, B = self.lora_A.astype(jnp.float32), self.lora_B.astype(jnp.float32)
        low_rank = (self.alpha / self.rank) * (B @ (A @ x.astype(jnp.float32)))
        return self.base(x) + low_rank.astype(x.dtype)
