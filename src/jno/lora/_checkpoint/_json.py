"""JSON from files, read with distrust."""

import collections
import json
import reprlib
from typing import Any, TypeGuard

_MOST_DIGITS = 20


class MalformedError(ValueError):
    """A file cannot be read. Becomes a `CheckpointError` that names the file."""


def parse_json(text: str, what: str) -> dict[str, Any]:
    """The JSON object in `text`. Duplicate keys, which `json.loads` lets pass, are refused.

    **Raises:** `MalformedError`.
    """
    try:
        value = json.loads(
            text,
            object_pairs_hook=_without_duplicates,
            parse_constant=_refuse_constant,
            parse_int=_short_int,
        )
    except (ValueError, RecursionError) as err:
        raise MalformedError(f"{what} is damaged, or not JSON: {err}") from err
    expect(isinstance(value, dict), value, what, "a JSON object")
    return value


def expect(is_right: bool, found: Any, what: str, kind: str) -> None:
    """**Raises:** `MalformedError`, that `what` is not a `kind`, unless it is right."""
    if not is_right:
        raise MalformedError(f"{what} is {brief(found)}, which is not {kind}")


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice, _ = collections.Counter(key for key, _ in pairs).most_common(1)[0]
        raise ValueError(f"the key {brief(twice)} is there twice")
    return found


def _refuse_constant(text: str) -> Any:
    raise ValueError(f"{text} is not JSON")


def _short_int(text: str) -> int:
    if len(text) > _MOST_DIGITS:  # reading a number of a million digits takes minutes
        raise ValueError(f"a number of {len(text):,} digits")
    return int(text)


def is_count(value: Any) -> TypeGuard[int]:
    """Whether a value from JSON is a whole number from 0 on."""
    return type(value) is int and value >= 0


def brief(value: Any) -> str:
    """Any value as short ASCII text, for a message."""
    return reprlib.repr(value).encode("ascii", "backslashreplace").decode()
