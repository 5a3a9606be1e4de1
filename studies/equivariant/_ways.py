"""The ways to adapt a force field: which arrays train."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
from jaxtyping import PRNGKeyArray

import jno_lora_e3nn  # noqa: F401
from jno.lora import Net

from ._force_field import ForceField


@dataclass(frozen=True)
class Way:
    """A way, as `start(model, key) -> (trainable, frozen)`."""

    name: str
    start: Callable[[ForceField, PRNGKeyArray], tuple[Any, Any]]


def _full(model: ForceField, key: PRNGKeyArray) -> tuple[Any, Any]:
    return eqx.partition(model, eqx.is_inexact_array)


def _head(model: ForceField, key: PRNGKeyArray) -> tuple[Any, Any]:
    """The readout: two linear layers of scalars."""
    nothing = jax.tree.map(lambda _: False, model)
    readout = jax.tree.map(eqx.is_inexact_array, model.readout)
    return eqx.partition(model, eqx.tree_at(lambda m: m.readout, nothing, readout))


def _adapted(rank: int, wrapper: str) -> Callable[[ForceField, PRNGKeyArray], tuple[Any, Any]]:
    def start(model: ForceField, key: PRNGKeyArray) -> tuple[Any, Any]:
        return Net(model, key=key).freeze().lora(rank, 2.0 * rank, wrapper=wrapper).partition()

    return start


FULL_WAY, LORA, GAINS, MMEA, HEAD = "full", "LoRA of rank 4", "IA3", "MMEA of rank 8", "head"
WAYS = (
    Way(FULL_WAY, _full),
    Way(LORA, _adapted(4, "lora")),
    Way(GAINS, _adapted(1, "ia3")),
    Way(MMEA, _adapted(8, "mmea")),
    Way(HEAD, _head),
)


def number_of(trainable: Any) -> int:
    """The number of parameters that train."""
    return sum(x.size for x in jax.tree.leaves(trainable))
