"""Adapters that a file does not restore."""

import equinox as eqx
import jax
import jax.numpy as jnp

from ._bases import Frozen, LoRA
from ._rows import Field, changed, noticed_by, wrong

by_file = noticed_by("state-round-trip")


by_file("StateForgetsB", state=lambda self: {"lora_A": self.lora_A})


def state_with(function):
    """A state with each array changed by the function."""
    return lambda self: {name: function(array) for name, array in LoRA.state(self).items()}


by_file("StateIsInHalfPrecision", state=state_with(lambda array: array.astype(jnp.float16)))
by_file("StateIsTransposed", state=state_with(lambda array: array.T))
# This fits square layers alone.
by_file(
    "SquareStatesAreSwapped", state=lambda self: {"lora_A": self.lora_B.T, "lora_B": self.lora_A.T}
)
by_file("StateHoldsNumbers", state=lambda self: {**LoRA.state(self), "alpha": self.alpha})
changed(
    "state-size",
    "StateHoldsATable",
    survives="the check is advice",
    says="numbers",
    table=Field(lambda self, base, key: jnp.zeros(1000 * base.weight.size)),
)


@wrong(None, survives="the check `state-size` is advice, and allows a hundred times the layer")
class StateHoldsTheLayer(LoRA):
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
    def from_state(self, base, state, rank, alpha):  # pyright: ignore
        return self


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


def restored(cls, base, state, rank, alpha):
    """What `from_state` of a correct adapter restores."""
    return LoRA.from_state.__func__(cls, base, state, rank, alpha)


by_file(
    "FromStateStartsAgain",
    from_state=lambda cls, base, state, rank, alpha: cls(base, rank, alpha, key=jax.random.key(0)),
)
by_file(
    "FromStateForgetsAlpha",
    says="restored differs from the saved",
    from_state=lambda cls, base, state, rank, alpha: restored(cls, base, state, rank, 1.0),
)


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
    @classmethod
    def from_state(cls, base, state, rank, alpha):
        restored = super().from_state(base, state, rank, alpha)
        return eqx.tree_at(lambda node: node.base, restored, restored.merge())


def from_rounded(function):
    """Restore from arrays that the function changed."""
    return lambda cls, base, state, rank, alpha: restored(
        cls, base, {name: function(a) for name, a in state.items()}, rank, alpha
    )


by_file(
    "FromStateRounds", from_state=from_rounded(lambda a: a.astype(jnp.bfloat16).astype(a.dtype))
)
by_file(
    "FromStateChangesTheLastBits",
    says="is not the state that was saved",
    from_state=from_rounded(lambda a: a * jnp.float32(1 + 2e-7)),
)


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

    def factors(self):
        A = self.lora_A if self.shift is None else self.lora_A + self.shift[:, None]
        return A, self.lora_B
