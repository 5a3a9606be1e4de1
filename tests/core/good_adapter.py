"""A correct adapter, for tests that change it in one point."""

import equinox as eqx
import jax
import jax.numpy as jnp

from jno.lora import MatrixAdapter


def update(wrapper):
    return (wrapper.alpha / wrapper.rank) * (wrapper.lora_B @ wrapper.lora_A)


def float_of(weight):
    return weight.astype(jnp.float64 if weight.dtype == jnp.float64 else jnp.float32)


class Good(MatrixAdapter):
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


class Factored(Good):
    """`W + B A`, with the factors that `low_rank_update` gives."""

    def __call__(self, x):
        A, B = (factor.astype(x.dtype) for factor in self.low_rank_update())
        return self.base(x) + B @ (A @ x)

    def merge(self):
        A, B = self.low_rank_update()
        W = float_of(self.base.weight) + B @ A
        return eqx.tree_at(lambda m: m.weight, self.base, W.astype(self.base.weight.dtype))
