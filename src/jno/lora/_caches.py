"""Caches of programs and of facts about adapter classes, which `refresh` empties."""

from collections.abc import Callable

_FORGET: list[Callable[[], object]] = []


def on_forget(clear: Callable[[], object]) -> None:
    """Let `forget` empty a cache, by calling `clear`."""
    _FORGET.append(clear)


def forget() -> None:
    """Empty the caches, because a class may have been edited in place."""
    for clear in _FORGET:
        clear()
