"""Broken adapters, each with the law that must notice it."""

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest

from jno.lora import LoRAWrapper
from jno_lora_conditional.testing import check_conditional
from jno_lora_testing import ConformanceError

X = jnp.array([0.3, -0.5, 0.8])


class Gain(LoRAWrapper):
    """`diag(1 + g) W`, rightly."""

    base: eqx.nn.Linear
    gain: jax.Array
    hidden: jax.Array
    rank: int = eqx.field(static=True)
    alpha: float = eqx.field(static=True)

    adapter_fields = ("gain", "hidden")

    def __init__(self, base, rank=1, alpha=1.0, *, key):
        self.base, self.rank, self.alpha = base, rank, alpha
        self.gain = jnp.zeros(base.weight.shape[0], base.weight.dtype)
        self.hidden = jnp.zeros_like(self.gain)

    @classmethod
    def applies_to(cls, layer):
        return isinstance(layer, eqx.nn.Linear) and not layer.use_bias

    def factor(self):
        return self.gain

    def __call__(self, x):
        y = self.base(x)
        return y + self.factor() * y

    def merge(self):
        W = self.base.weight
        return eqx.tree_at(lambda layer: layer.weight, self.base, W + self.factor()[:, None] * W)


def factor_of_a_hidden_field(self):
    """A trained field that the small changes of a probe do not show."""
    return self.gain + jnp.maximum(jnp.abs(self.hidden) - 0.3, 0)


def call_that_asks_for_values(self, x):
    return Gain.__call__(self, x) if jnp.any(self.gain != 0) else self.base(x)


def detached(self):
    return jax.lax.stop_gradient(self.gain) * (1 + self.hidden)


# A name, what is overridden, and the law that notices it.
BROKEN = {
    "ActsWhenLarge": (
        {"factor": factor_of_a_hidden_field},
        r"\[source\] at the source, the merged layer differs",
    ),
    "CallsTwice": (
        {"__call__": lambda self, x: self.base(x) * (1 + 2 * self.factor())},
        r"\[merge\] the merged layer gives another output",
    ),
    "Detached": (
        {"factor": detached},
        r"\[derivative\] .* differs from central differences .*stop_gradient",
    ),
    "AsksForValues": (
        {"__call__": call_that_asks_for_values},
        "needs the values of its fields while it is traced",
    ),
    "Ignored": (
        {"__call__": lambda self, x: self.base(x)},
        r"\[acts\] the parameter changes nothing",
    ),
    "RootAtZero": (
        {"factor": lambda self: self.gain * jnp.sqrt(jnp.sum(self.gain**2))},
        r"\[derivative\] .* is not finite at the source",
    ),
    "Rounds": (
        {"__call__": lambda self, x: (1 + self.factor()) / 3 * (self.base(x) * 3)},
        r"\[source\] at the source, the call differs",
    ),
}


def layer():
    return eqx.nn.Linear(3, 7, use_bias=False, key=jax.random.key(0))


def test_a_right_adapter():
    conditional = check_conditional(Gain, layer(), X, moving={})
    assert conditional.directions[""]["gain"].shape == (2, 7)


@pytest.mark.parametrize("name", BROKEN)
def test_broken_adapters(name):
    members, problem = BROKEN[name]
    with pytest.raises(ConformanceError, match=problem):
        check_conditional(type(name, (Gain,), members), layer(), X)
