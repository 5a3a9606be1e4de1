"""Sums of adapters in a file: the description of their members."""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

from .._contract import LoRAWrapper
from .._sets import AdapterSum, Member, sum_class
from ._kinds import (
    ALPHA,
    BOOL,
    CLASS_NAME,
    COUNT,
    DISTRIBUTION,
    TEXT,
    VERSION,
    Kind,
    check,
    is_text,
)

# The class of a sum in a file. The members say the rest.
SUM = "AdapterSum"


@dataclasses.dataclass(frozen=True)
class Part:
    """One member of a sum: its name, its class as in an `Entry`, and whether it trains."""

    name: str
    wrapper: str
    distribution: str | None
    version: str
    variant: str | None
    rank: int | None
    alpha: float | None
    trains: bool

    def as_json(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in _PART}


_PART: dict[str, Any] = {
    "wrapper": CLASS_NAME,
    "distribution": DISTRIBUTION.or_null(),
    "version": VERSION,
    "variant": TEXT.or_null(),
    "rank": COUNT.or_null(),
    "alpha": ALPHA.or_null(),
    "trains": BOOL,
}
_NAME = Kind(
    "the name of adapters: printable text without a slash, not empty",
    lambda x: is_text(x) and x != "" and "/" not in x,
)


def parts_in(members: Any, path: str) -> tuple[Part, ...]:
    """The members in the JSON of an entry. **Raises:** `MalformedError`."""
    if members is None:
        return ()
    where = f"adapters/{path}/members"
    check(members, {_NAME: _PART}, where)
    return tuple(
        Part(name, **{key: part.get(key) for key in _PART}) for name, part in members.items()
    )


def class_of_sum(
    parts: Iterable[Part], trains_weights: bool, class_of: Callable[[Part], type[LoRAWrapper]]
) -> type[AdapterSum]:
    """The class of a sum. **Raises:** as `class_of`, which finds the class of a member."""
    members = [Member(p.name, class_of(p), p.rank, p.alpha, p.trains) for p in parts]
    return sum_class(tuple(members), trains_weights)
