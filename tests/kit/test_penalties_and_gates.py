"""The penalties that adapters define are summed; and what the kit says of them and of gates."""

import jax
import jax.numpy as jnp
import pytest
from tests.core.gated_adapters import Gated

from jno.lora.testing import ConformanceError, wrapper_checks

from .broken_adapters import case_of


def error_of(name, wrapper):
    with pytest.raises(ConformanceError) as error:
        wrapper_checks(case_of(wrapper))[name]()
    return str(error.value)


def test_the_kit_finds_penalties_that_are_not_finite_or_move_nothing():
    class NotFinite(Gated):
        def penalty(self):
            return jnp.log(-jnp.sum(self.lora_A**2))

    class RootAtZero(Gated):
        def penalty(self):
            return jnp.sqrt(jnp.sum(0 * self.lora_A))

    class MovesNothing(Gated):
        def penalty(self):
            return jnp.sum(jax.lax.stop_gradient(self.lora_A))

    assert "At the start, the penalty is nan." in error_of("penalty", NotFinite)
    assert "by `lora_A` is not finite" in error_of("penalty", RootAtZero)
    assert "moves no trained array" in error_of("penalty", MovesNothing)


def test_the_kit_finds_gates_and_axes_that_are_not_those_of_directions():
    class OfAnotherShape(Gated):
        rank_gate = "lora_B"
        rank_axes = {}  # noqa: RUF012

    class OfAnotherAxis(Gated):
        rank_axes = {"lora_A": 1}  # noqa: RUF012

    class Ignored(Gated):
        def low_rank_update(self):
            return self.lora_A, 0 * self.lora_B * self.gate[None, :]

    class WithoutEffect(Gated):
        adapter_fields = ("lora_A", "lora_B", "gate", "extra")
        rank_axes = {**Gated.rank_axes, "extra": 0}  # noqa: RUF012
        extra: jax.Array

        def __init__(self, base, rank, alpha, *, key):
            Gated.__init__(self, base, rank, alpha, key=key)
            self.extra = jnp.zeros(rank)

    for wrapper, said in {
        OfAnotherShape: "'lora_B' of one layer has the shape (4, 2), not (r,)",
        OfAnotherAxis: "gives axis 1 of 'lora_A', whose shape is (2, 6)",
        Ignored: "does not change if an entry of the gate",
        WithoutEffect: "has no effect, though its gate is open",
    }.items():
        assert said in error_of("rank-gate", wrapper)
