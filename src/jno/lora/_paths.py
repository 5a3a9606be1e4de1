"""Paths of pytree nodes: how they are written, hashed and compared."""

import difflib
import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

import jax.tree_util as jtu

KeyPath = tuple[Any, ...]

# How many lines a message shows: for problems, and for hints.
_EVERY, FEW = 100, 12


def path_str(keys: KeyPath) -> str:
    """A JAX key path, slash-joined: `encoder/layers/0/query_proj`. The root is `""`."""
    return jtu.keystr(keys, simple=True, separator="/")


def show_path(path: str) -> str:
    """`path` as messages and tables show it."""
    return path or "<root>"


def show_place(cls: type, path: str) -> str:
    """An object and its path as messages show them: `the LoRALinear at 'layers/0'`."""
    return f"the {cls.__name__} at {show_path(path)!r}"


def show_array(array: Any) -> str:
    """The dtype and shape of `array` as messages show them: `float32[3, 2]`."""
    return f"{array.dtype}{list(array.shape)}"


def stable_hash(path: str) -> int:
    """A 32-bit hash of `path`, the same in every process. (Python's `hash` is salted.)"""
    return int.from_bytes(hashlib.blake2b(path.encode(), digest_size=4).digest(), "little")


def nearest(name: str, options: Iterable[str], n: int = 5) -> list[str]:
    """The options most like `name`, best first. At least one, if there are any options."""
    unique = list(dict.fromkeys(options))
    near = difflib.get_close_matches(name, unique, n=n, cutoff=0.4)
    # The regex ".*enc.*" should find "encoder/0", although the strings are not similar.
    return near or difflib.get_close_matches(name, unique, n=1, cutoff=0.0)


def listed(names: Sequence[str], limit: int) -> str:
    """The names in a sentence. After `limit` names, the number of further names."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return f"{', '.join(names[:limit])}{more}"


def bullets(lines: Iterable[str], limit: int = _EVERY) -> str:
    """The lines as an indented list. After `limit` lines, the number of further lines."""
    lines = list(lines)
    more = [f"... and {len(lines) - limit} more"] if len(lines) > limit else []
    return "\n".join(f"  - {line}" for line in [*lines[:limit], *more])
