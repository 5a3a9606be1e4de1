"""Kinds of JSON values, and a check of a value against a kind."""

import math
import re
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

from ._container import MalformedError, brief


class Kind(NamedTuple):
    """A kind of JSON values: its name, and a test of a value."""

    name: str
    holds: Callable[[Any], bool]

    def or_null(self) -> "Kind":
        return Kind(self.name, lambda x: x is None or self.holds(x))


def check(value: Any, kind: Any, where: str = "") -> None:
    """**Raises:** `MalformedError` unless `value` is of a kind: a `Kind`, or an object of kinds.

    A missing key is null. Unknown keys are skipped. A `Kind` as the only key stands for all keys.
    """
    if isinstance(kind, Kind):
        if not kind.holds(value):
            problem = f"{where} is {brief(value)}, which is not {kind.name}"
            raise MalformedError(f"in its configuration, {problem}")
        return
    check(value, _OBJECT, where)
    for key, inner in kind.items():
        for name in value if isinstance(key, Kind) else [key]:
            if name is not key:
                check(name, key, f"a key of {where}")
            check(value.get(name), inner, f"{where}/{name}".removeprefix("/"))


def is_text(value: Any) -> bool:
    # Messages and terminals show it.
    return isinstance(value, str) and value.isprintable() and len(value) <= 20_000


def is_number(value: Any) -> bool:
    """Whether it is a number that a program can use: finite, and not wider than 64 bits."""
    is_whole = type(value) is int and abs(value) < 2**64  # a bool is an `int`, too
    return is_whole or (type(value) is float and math.isfinite(value))


def is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**31


def matching(name: str, pattern: str) -> Kind:
    return Kind(name, lambda x: isinstance(x, str) and re.fullmatch(pattern, x) is not None)


_OBJECT = Kind("a JSON object", lambda x: isinstance(x, dict))
TEXT = Kind("printable text of at most 20,000 characters", is_text)
TEXTS = Kind("a list of printable text", lambda x: isinstance(x, list) and all(map(is_text, x)))
COUNT = Kind("a whole number from 0 to 2^31 - 1", is_count)
PATH = Kind(
    "the path of an adapter: printable names between slashes, not empty, '.' or '..'",
    # The path of the root is empty.
    lambda x: is_text(x) and (not x or {"", ".", ".."}.isdisjoint(x.split("/"))),
)
SHAPE = Kind("a list of whole numbers", lambda x: isinstance(x, list) and all(map(is_count, x)))
# Messages show code with the class, and a command with the distribution and its version. So these
# three must not hold anything else.
CLASS_NAME = Kind("the name of a class", lambda x: is_text(x) and x.isidentifier())
DISTRIBUTION = matching("a normalised name (PEP 503)", r"(?!.{101})[a-z0-9]+(-[a-z0-9]+)*")
VERSION = matching("a version", r"[0-9A-Za-z.+!-]{0,100}")
ALPHA = Kind("a finite number", lambda x: type(x) in (int, float) and abs(x) <= sys.float_info.max)
BOOL = Kind("true or false", lambda x: isinstance(x, bool))
