"""Adapters that a file does not restore."""

import equinox as eqx
import jax
import jax.numpy as jnp

from ._bases import Frozen, LoRA
from ._rows import Field, changed, noticed_by, wrong

by_file = noticed_by("state-round-trip")


def state_with(function):
    """A state with each array changed by the function."""
    return lambda self: {name: function(array) for name, array in LoRA.state(self).items()}


by_file("StateForgetsB", state=lambda self: {"lora_A": self.lora_A})
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


def restored(cls, base, state, rank, alpha):
    """What `from_state` of a correct adapter restores."""
    return LoRA.from_state.__func__(cls, base, state, rank, alpha)


def with_weight_of_the_state(cls, base, state, rank, alpha):
    weight = state["weight"].astype(base.weight.dtype)
    base = eqx.tree_at(lambda node: node.weight, base, weight)
    return restored(cls, base, {name: state[name] for name in cls.adapter_fields}, rank, alpha)


changed(
    None,
    "StateHoldsTheLayer",
    survives="the check `state-size` is advice, and allows a hundred times the layer",
    state=lambda self: {**LoRA.state(self), "weight": self.base.weight},
    from_state=with_weight_of_the_state,
)


@wrong("contract")
class FromStateNeedsAnInstance(LoRA):
    def from_state(self, base, state, rank, alpha):  # pyright: ignore
        return self


def with_fresh_scales(cls, base, state, rank, alpha):
    fresh = cls(base, rank, alpha, key=jax.random.key(0))
    factors = (state["lora_A"], state["lora_B"])
    return eqx.tree_at(lambda node: (node.lora_A, node.lora_B), fresh, factors)


# The state holds trained arrays alone.
by_file(
    "StateForgetsFrozenScales",
    Frozen,
    state=lambda self: {"lora_A": self.lora_A, "lora_B": self.lora_B},
    from_state=with_fresh_scales,
)
by_file(
    "FromStateStartsAgain",
    from_state=lambda cls, base, state, rank, alpha: cls(base, rank, alpha, key=jax.random.key(0)),
)
by_file(
    "FromStateForgetsAlpha",
    says="restored differs from the saved",
    from_state=lambda cls, base, state, rank, alpha: restored(cls, base, state, rank, 1.0),
)


# The factors come back, beside another rank and so another scale.
def with_rank_one(cls, *saved):
    adapter = restored(cls, *saved)
    object.__setattr__(adapter, "rank", 1)
    return adapter


def with_merged_base(cls, *saved):
    adapter = restored(cls, *saved)
    return eqx.tree_at(lambda node: node.base, adapter, adapter.merge())


def from_rounded(function):
    """Restore from arrays that the function changed."""
    return lambda cls, base, state, rank, alpha: restored(
        cls, base, {name: function(a) for name, a in state.items()}, rank, alpha
    )


by_file("FromStateForgetsTheRank", from_state=with_rank_one)
by_file("FromStateMergesFirst", from_state=with_merged_base)
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
