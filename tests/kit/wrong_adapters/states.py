"""Adapters that a file does not restore."""

import equinox as eqx
import jax
import jax.numpy as jnp

from ._bases import Frozen, LoRA
from ._rows import wrong


@wrong("state-round-trip")
class StateForgetsFrozenScales(Frozen):
    """`state` holds trained arrays alone, and `from_state` draws other scales."""

    def state(self):
        return {"lora_A": self.lora_A, "lora_B": self.lora_B}

    @classmethod
    def from_state(cls, base, state, rank, alpha):
        fresh = cls(base, rank, alpha, key=jax.random.key(0))
        factors = (state["lora_A"], state["lora_B"])
        return eqx.tree_at(lambda node: (node.lora_A, node.lora_B), fresh, factors)


@wrong("state-round-trip")
class FromStateStartsAgain(LoRA):
    """`from_state` runs the constructor and ignores the state."""

    @classmethod
    def from_state(cls, base, state, rank, alpha):
        return cls(base, rank, alpha, key=jax.random.key(0))


@wrong("state-round-trip")
class StateIsInHalfPrecision(LoRA):
    """`state` casts to float16, for small files."""

    def state(self):
        return {name: array.astype(jnp.float16) for name, array in super().state().items()}


@wrong("state-round-trip")
class StateIsTransposed(LoRA):
    """`state` transposes the factors, and `from_state` does not."""

    def state(self):
        return {name: array.T for name, array in super().state().items()}


@wrong("state-round-trip")
class SquareStatesAreSwapped(LoRA):
    """`state` gives the transposed factors each other's name, which fits square layers alone."""

    def state(self):
        return {"lora_A": self.lora_B.T, "lora_B": self.lora_A.T}


@wrong("state-round-trip")
class StateHoldsNumbers(LoRA):
    """`state` also holds `alpha`, a Python number."""

    def state(self):
        return {**super().state(), "alpha": self.alpha}


@wrong(None, survives="the check `state-size` is advice, and allows a hundred times the layer")
class StateHoldsTheLayer(LoRA):
    """`state` also holds the weight, and `from_state` puts this weight into the layer."""

    def state(self):
        return {**super().state(), "weight": self.base.weight}

    @classmethod
    def from_state(cls, base, state, rank, alpha):
        weight = state["weight"].astype(base.weight.dtype)
        base = eqx.tree_at(lambda node: node.weight, base, weight)
        factors = {name: state[name] for name in ("lora_A", "lora_B")}
        return super().from_state(base, factors, rank, alpha)


@wrong("contract")
class FromStateNeedsAnInstance(LoRA):
    """`from_state` is not a classmethod."""

    def from_state(self, base, state, rank, alpha):  # pyright: ignore
        return self


@wrong("state-round-trip")
class FromStateForgetsAlpha(LoRA):
    """`from_state` restores the adapter with alpha 1."""

    @classmethod
    def from_state(cls, base, state, rank, alpha):
        return super().from_state(base, state, rank, 1.0)


@wrong("state-round-trip")
class FromStateForgetsTheRank(LoRA):
    """`from_state` restores the factors with rank 1 in the field, and so another scale."""

    @classmethod
    def from_state(cls, base, state, rank, alpha):
        restored = super().from_state(base, state, rank, alpha)
        object.__setattr__(restored, "rank", 1)
        return restored


@wrong("state-round-trip")
class FromStateMergesFirst(LoRA):
    """`from_state` adds the update to the base as well."""

    @classmethod
    def from_state(cls, base, state, rank, alpha):
        restored = super().from_state(base, state, rank, alpha)
        return eqx.tree_at(lambda node: node.base, restored, restored.merge())


@wrong("state-round-trip")
class FromStateCastsToTheLayer(LoRA):
    """`from_state` casts the factors to bfloat16 and back."""

    @classmethod
    def from_state(cls, base, state, rank, alpha):
        rounded = {name: a.astype(jnp.bfloat16).astype(a.dtype) for name, a in state.items()}
        return super().from_state(base, rounded, rank, alpha)


@wrong("law", options={"with_shift": True})
class OptionsOfForgetsAField(LoRA):
    """An option adds a field, and `options_of` does not find the option in the state."""

    optional_fields = ("shift",)
    shift: jax.Array | None

    @classmethod
    def low_rank_scale(cls, rank, alpha):
        return None

    def __init__(self, base, rank, alpha, *, key, with_shift=False):
        super().__init__(base, rank, alpha, key=key)
        self.shift = jnp.zeros(len(self.lora_A), self.lora_A.dtype) if with_shift else None

    def shifted(self):
        return self.lora_A if self.shift is None else self.lora_A + self.shift[:, None]

    def low_rank_update(self):
        return self.shifted(), self.scale() * self.lora_B

    def added(self, x):
        A, B = self.shifted().astype(x.dtype), self.lora_B.astype(x.dtype)
        return self.scale() * (B @ (A @ x))

    def update(self):
        return self.scale() * (self.lora_B @ self.shifted())
