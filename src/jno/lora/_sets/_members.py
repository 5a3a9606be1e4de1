"""Sums of adapters as the core sees them. `jno-lora-combine` makes them, and computes with them."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, NamedTuple, TypeAlias

from equinox import AbstractVar
from jaxtyping import Array, Float

from .._contract import LoRAWrapper, MatrixAdapter

# The weights of the sets in a sum, by name.
Weights: TypeAlias = Mapping[str, Any] | Literal["train"] | None


class Member(NamedTuple):
    """One adapter of a sum: its name, class, rank and alpha, and whether it trains."""

    name: str
    wrapper: type[LoRAWrapper]
    rank: int | None
    alpha: float | None
    trains: bool = False


class SeveralAdapters(MatrixAdapter):
    """The base class of `AdapterSum`: several adapters of one layer, with a weight each.

    - `trained`, `frozen`: the members by name, without their base.
    - `weights`: in the order of `members`. They train if `adapter_fields` names them.
    """

    members: ClassVar[tuple[Member, ...]] = ()
    trained: AbstractVar[dict[str, Any]]
    frozen: AbstractVar[dict[str, Any]]
    weights: AbstractVar[Float[Array, " n"]]


def members_of(cls: type[LoRAWrapper]) -> tuple[Member, ...]:
    """The adapters that `cls` adds up; none for a single adapter."""
    return cls.members if issubclass(cls, SeveralAdapters) else ()
