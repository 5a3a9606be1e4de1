"""JSON from files, read with distrust."""

import collections
import json
import math
import reprlib
from typing import Any

_MOST_DIGITS = 20


class MalformedError(ValueError):
    """A file cannot be read. Becomes a `CheckpointError` that names the file."""


def parse_json(content: str | bytes, what: str) -> dict[str, Any]:
    """The JSON object in `content`. Duplicate keys, which `json.loads` lets pass, are refused.

    **Raises:** `MalformedError`.
    """
    try:
        value = json.loads(
            content.decode() if isinstance(content, bytes) else content,
            object_pairs_hook=_without_duplicates,
            parse_constant=_refuse_constant,
            parse_int=_short_int,
        )
    except (ValueError, RecursionError) as err:
        raise MalformedError(f"{what} is damaged, not text, or not JSON: {err}") from err
    if not isinstance(value, dict):
        raise MalformedError(f"{what} is {brief(value)}, which is not a JSON object")
    return value


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


def brief(value: Any) -> str:
    """Any value as short ASCII text, for a message."""
    return reprlib.repr(value).encode("ascii", "backslashreplace").decode()


def fits_numpy(shape: list[int]) -> bool:
    """Whether an array may have this shape."""
    # NumPy counts an array without elements as if it had some.
    return len(shape) <= 32 and math.prod(max(axis, 1) for axis in shape) <= 2**56
