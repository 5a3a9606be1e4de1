"""Keep a plugin that loads from changing the program around it: settings, warnings, output."""

import contextlib
import dataclasses
import sys
import threading
import warnings
from collections.abc import Iterator
from typing import Any

import jax

_Filter = tuple[str, Any, type[Warning], Any, int]

# Held while `sys.stdout` is replaced.
_LOCK = threading.Lock()


@dataclasses.dataclass
class SideEffects:
    """What the code of a plugin did to the whole program while the plugin loaded.

    - `settings`: a text for each setting that the code changed.
    - `prints`: whether the code wrote to standard output.
    """

    settings: tuple[str, ...] = ()
    prints: bool = False


@contextlib.contextmanager
def contained() -> Iterator[SideEffects]:
    """Undo what the code inside does to the whole program, and tell what the code did.

    Options of JAX and filters of warnings are set back. Text for standard output goes to standard
    error, because a program may read the output of `jno-lora plugins --json`. Text that does not
    pass through `sys.stdout`, such as the output of a C library, is not seen.
    """
    effects = SideEffects()
    options = dict(jax.config.values)
    filters: Any = warnings.filters
    filters_before = list(filters)
    stdout = _Stdout()
    try:
        stdout.begin()
        yield effects
    finally:
        stdout.thread = None  # a plain assignment happens also if Ctrl-C interrupts
        stdout.end()
        effects.prints = stdout.has_printed
        effects.settings = (*_restored_options(options), *_restored(filters, filters_before))


def _restored_options(before: dict[str, Any]) -> list[str]:
    """Set the options of JAX back. Returns a text for each option that had changed."""
    after, changes = jax.config.values, list[str]()
    for name in (name for name, value in before.items() if after[name] != value):
        change = f"{name} = {after[name]!r}"
        try:
            jax.config.update(name, before[name])
        except Exception as err:  # some options are fixed once JAX has looked for devices
            change += f" (which cannot be set back: {err})"
        changes.append(change)
    return changes


def _restored(filters: list[_Filter], before: list[_Filter]) -> list[str]:
    """Set the filters of warnings back. Filters for the warnings of one library stay.

    Returns a text for each change. `warnings.catch_warnings` of another thread puts another list
    in the place of `filters`. Then nobody can tell who filters what, and nothing is set back.
    """
    added = [entry for entry in filters if entry not in before]
    broad = [entry for entry in added if _is_broad(entry)]
    is_whole = [entry for entry in filters if entry in before] == before
    if warnings.filters is not filters or (is_whole and not broad):
        return []
    filters[:] = [*(entry for entry in added if entry not in broad), *before]
    with warnings.catch_warnings():
        pass  # lets Python forget which warnings the other filters let pass
    changes = [f"the warnings filter {e[0]!r} for {e[2].__name__} in all modules" for e in broad]
    return changes or ["the order of the warnings filters"]


def _is_broad(entry: _Filter) -> bool:
    """Whether a filter of warnings is for all modules and a category of Python itself."""
    _, message, category, module, _ = entry
    return message is None and module is None and category.__module__ == "builtins"


class _Stdout:
    """Stands for `sys.stdout`: one thread writes to `sys.stderr`, and other threads as before.

    Several threads may load plugins. Each thread puts its object around the former `sys.stdout`.
    """

    def __init__(self):
        self.thread: int | None = threading.get_ident()
        self.has_printed = False
        self.below: Any = None

    def begin(self) -> None:
        with _LOCK:
            self.below = sys.stdout
            if None not in (sys.stdout, sys.stderr):  # None: a program without a console
                sys.stdout = self

    def __getattr__(self, name: str) -> Any:
        if self.thread != threading.get_ident():
            return getattr(self.below, name)
        self.has_printed = self.has_printed or name in ("write", "writelines", "buffer")
        return getattr(sys.stderr, name)

    def end(self) -> None:
        """Take the objects whose `thread` is `None` away from `sys.stdout`."""
        with _LOCK:
            while isinstance(sys.stdout, _Stdout) and sys.stdout.thread is None:
                sys.stdout = sys.stdout.below
