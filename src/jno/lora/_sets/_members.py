"""What the core knows of several adapters in one layer. `jno-lora-combine` adds them up."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, NamedTuple, TypeAlias

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
    """The base class of `AdapterSum`: several adapters of one layer."""

    members: ClassVar[tuple[Member, ...]] = ()


def members_of(cls: type[LoRAWrapper]) -> tuple[Member, ...]:
    """The adapters that `cls` adds up; none for a single adapter."""
    return cls.members if issubclass(cls, SeveralAdapters) else ()
