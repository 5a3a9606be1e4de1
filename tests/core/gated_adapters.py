"""An adapter with a gate and a penalty, and those that break a promise about one of them."""

import jax
import jax.numpy as jnp

from jno.lora import LowRankForm

from .good_adapter import Factored, float_of


class Gated(Factored):
    """`W + s B diag(gate) A`: a correct adapter, with a penalty on rows of `A`."""

    adapter_fields = ("lora_A", "lora_B", "gate")
    rank_gate = "gate"
    rank_axes = {"lora_A": 0, "lora_B": 1}  # noqa: RUF012
    gate: jax.Array

    def __init__(self, base, rank, alpha, *, key):
        super().__init__(base, rank, alpha, key=key)
        W = float_of(base.weight)
        self.lora_B = jax.random.normal(key, (W.shape[0], rank), W.dtype)
        self.gate = jnp.zeros(rank, W.dtype)

    def seen(self):
        """The factor that reads the input."""
        return self.lora_A

    def low_rank_form(self):
        return LowRankForm(self.seen(), (self.alpha / self.rank) * self.lora_B * self.gate[None, :])

    def penalty(self):
        identity = jnp.eye(self.rank, dtype=self.lora_A.dtype)
        return jnp.sum((self.lora_A @ self.lora_A.T - identity) ** 2)


class PenaltyPullsOnTheBase(Gated):
    """The penalty has a gradient by the frozen weight."""

    def penalty(self):
        return jnp.sum(self.merge().weight ** 2)


class MixesItsDirections(Gated):
    """Each gate lets two rows of `A` through."""

    def seen(self):
        return self.lora_A + jnp.roll(self.lora_A, 1, axis=0)
