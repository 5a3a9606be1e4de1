"""Progress of long work: a bar in a terminal, lines in the log."""

import contextlib
import logging
import operator
import sys
import time
from collections.abc import Generator, Iterable
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from rich.console import Console

T = TypeVar("T")

_log = logging.getLogger("jno.lora")

# Nothing is shown during the first seconds.
_PATIENCE = 2.0  # seconds
_BETWEEN_LINES = 10.0  # seconds


def tracked(
    items: Iterable[T], what: str, *, console: "Console | None" = None, show: bool = True
) -> Generator[T, None, None]:
    """Yield the items, with a `Bar` after some seconds.

    There is no bar if the number of items is unknown. The logger `jno.lora` reports the progress at
    level INFO, every ten seconds and at the end. If the work may raise, close the iterator
    (`contextlib.closing`), so that the bar does not stay.
    """
    total = operator.length_hint(items)  # 0 if unknown; a `len` that raises TypeError is caught
    if not (show and total):
        yield from items
        return
    start = said = time.monotonic()
    with contextlib.ExitStack() as stack:
        bar: Bar | None = None
        for done, item in enumerate(items):
            now = time.monotonic()
            if bar is None and now - start > _PATIENCE:
                bar = stack.enter_context(Bar(total, what, console=console))
            if bar is not None:
                bar.update(completed=done)
            if now - said > _BETWEEN_LINES:
                said = now
                _log.info("%s: %d of %d", what, done, total)
            yield item
    if (took := time.monotonic() - start) > _PATIENCE:
        _log.info("%s: %d in %.1f s", what, total, took)


class Bar:
    """A bar in a terminal, and nothing elsewhere. A context manager removes it at the end.

    - `total`: the number of steps; `what`: the work, such as "Adapting layers".
    - `console`: where to draw, if it is a terminal, instead of on standard error.
    """

    def __init__(self, total: int, what: str = "", *, console: "Console | None" = None):
        # Imported here, because most work needs no bar.
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TimeRemainingColumn

        # `is_terminal` alone would trust FORCE_COLOR.
        is_hidden = console is None and not sys.stderr.isatty()
        console = Console(stderr=True) if console is None else console
        self._progress = Progress(
            "{task.description}",
            BarColumn(),
            "{task.completed}/{task.total}",
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=is_hidden or not console.is_terminal,
        )
        self._task = self._progress.add_task(what, total=total)
        self._progress.start()

    def __enter__(self) -> "Bar":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def update(self, *, completed: int | None = None, what: str | None = None) -> None:
        """Show the steps done and the current work. `None` leaves a value unchanged."""
        self._progress.update(self._task, completed=completed, description=what)

    def advance(self) -> None:
        """Show one more step."""
        self._progress.advance(self._task)

    def stop(self) -> None:
        """Remove the bar."""
        if not self._progress.disable:  # or older versions of Rich write an empty line
            self._progress.stop()
