"""Keep a plugin that loads from changing the program around it: settings, warnings, output."""

import contextlib
import dataclasses
import sys
import threading
import warnings
from collections.abc import Iterable, Iterator
from typing import Any

import jax

_Filter = tuple[str, Any, type[Warning], Any, int]

# Held while `sys.stdout` is replaced.
_LOCK = threading.Lock()

# Streams of plugins that were taken away. A `TextIOWrapper` that nobody holds closes the buffer
# inside, which the program's stream may use as well.
_TAKEN_AWAY: list[Any] = []


@dataclasses.dataclass
class SideEffects:
    """The changes that the code of a plugin made to the whole program while the plugin loaded.

    - `settings`: a text for each setting that the code changed.
    - `prints`: whether the code wrote to standard output.
    """

    settings: tuple[str, ...] = ()
    prints: bool = False


@contextlib.contextmanager
def contained() -> Iterator[SideEffects]:
    """Undo what the code inside does to the whole program, and tell what the code did.

    Options of JAX, filters of warnings, `sys.stdout` and `sys.stderr` are set back if the program
    had only this thread at the start. In a program of several threads, nobody can tell which thread
    changed them, so they stay. Text for standard output goes to standard error, because a program
    may read the output of `jno-lora plugins --json`. Text that does not pass through `sys.stdout`,
    such as the output of a C library, is not seen.
    """
    effects = SideEffects()
    is_alone = threading.active_count() == 1
    options = dict(jax.config.values)
    filters: Any = warnings.filters
    filters_before = list(filters)
    stdout = _Stdout()
    try:
        stdout.begin()
        yield effects
    finally:
        stdout.thread = None  # a plain assignment happens also if Ctrl-C interrupts
        streams = stdout.end(is_alone)
        effects.prints = stdout.has_printed
        if is_alone:
            changes = (*_restored_options(options), *_restored(filters, filters_before))
            effects.settings = (*changes, *streams)


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
        self.stderr: Any = None

    def begin(self) -> None:
        with _LOCK:
            self.below, self.stderr = sys.stdout, sys.stderr
            if None not in (sys.stdout, sys.stderr):  # None: a program without a console
                sys.stdout = self

    def stream(self) -> Any:
        """The stream that this thread writes to."""
        return self.stderr if self.thread == threading.get_ident() else self.below

    def notice(self, text: Any) -> None:
        """Remember that the loading thread writes."""
        is_print = self.thread == threading.get_ident() and len(text) > 0
        self.has_printed = self.has_printed or is_print

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self.stream(), name)
        return _Buffer(self) if name == "buffer" else attribute

    def write(self, text: str) -> int:
        self.notice(text)
        return self.stream().write(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def detach(self) -> Any:
        """The buffer. The stream below keeps its buffer, which other threads use."""
        return _Buffer(self)

    def end(self, is_alone: bool) -> list[str]:
        """Take the objects whose `thread` is `None` away from `sys.stdout`.

        Returns the names of the streams that the code of a plugin replaced. If `is_alone`, they are
        set back.
        """
        with _LOCK:
            replaced = list[str]()
            if is_alone and sys.stdout is not self and sys.stdout is not self.below:
                _TAKEN_AWAY.append(sys.stdout)
                sys.stdout = self.below
                replaced.append("sys.stdout")
            if is_alone and sys.stderr is not self.stderr:
                _TAKEN_AWAY.append(sys.stderr)
                sys.stderr = self.stderr
                replaced.append("sys.stderr")
            while isinstance(sys.stdout, _Stdout) and sys.stdout.thread is None:
                sys.stdout = sys.stdout.below
            return replaced


class _Buffer:
    """Stands for the buffer of `sys.stdout`, as `_Stdout` for the text.

    A stream that a plugin builds around the buffer writes to standard output once the plugin is
    loaded.
    """

    def __init__(self, text: _Stdout):
        self.text = text

    def __getattr__(self, name: str) -> Any:
        return getattr(self.text.stream().buffer, name)

    def write(self, data: Any) -> int:
        self.text.notice(data)
        return self.text.stream().buffer.write(data)

    def close(self) -> None:
        """Nothing: the buffer belongs to the program, not to the stream around it."""
