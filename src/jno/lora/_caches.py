"""Caches of programs and of facts about adapter classes, which `refresh` empties."""

import functools
from collections.abc import Callable
from typing import Any

_FORGET: list[Callable[[], object]] = []


def on_forget(clear: Callable[[], object]) -> None:
    """Let `forget` empty another cache, by calling `clear`."""
    _FORGET.append(clear)


def remembered(most: int) -> Callable[[Callable[..., Any]], Any]:
    """A decorator: `functools.lru_cache` of up to `most` results, which `forget` empties."""

    def decorate(function: Callable[..., Any]) -> Any:
        cached = functools.lru_cache(maxsize=most)(function)
        on_forget(cached.cache_clear)
        return cached

    return decorate


def forget() -> None:
    """Empty the caches, because a class may have been edited in place."""
    for clear in _FORGET:
        clear()
