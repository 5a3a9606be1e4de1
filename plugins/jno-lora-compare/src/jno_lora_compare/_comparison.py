"""The result of a comparison: a row per candidate, as a table, a picture or a file."""

import csv
import dataclasses
from collections.abc import Callable
from os import PathLike
from typing import TYPE_CHECKING, Any

from jno.lora import SelectionError
from jno.lora.extending import Printed, new_picture, table
from jno.lora.types import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclasses.dataclass(frozen=True)
class ComparisonRow:
    """The result of one candidate.

    - `name`: as it was asked for.
    - `trainable`: how many parameters train.
    - `losses`: at every step, before its update.
    - `final_loss`: the mean over the last tenth of the steps; `best_loss`: the lowest such mean on
        the way.
    - `milliseconds`: the median step but the first; `None` if there was only one.
    - `temp_bytes`: the temporary memory of the compiled step, beside its arguments and results;
        `None` where the compiler does not say.
    - `compile_seconds`: how long tracing and compiling the step took.
    - `learning_rate`: the best one; `None` with an optimiser of your own, and where nothing trains.
    - `score`: the number that `score` returned for the trained model, the first of a tuple.
    - `model`: the trained model, with its adapters.
    - `error`: why the candidate could not be trained. Then only `name` is set beside it.
    """

    name: str
    trainable: int | None = None
    final_loss: float | None = None
    best_loss: float | None = None
    milliseconds: float | None = None
    temp_bytes: int | None = None
    compile_seconds: float | None = None
    learning_rate: float | None = None
    score: float | None = None
    losses: tuple[float, ...] = dataclasses.field(default=(), repr=False)
    model: Any = dataclasses.field(default=None, repr=False, compare=False)
    error: str | None = None


@dataclasses.dataclass(frozen=True, repr=False)
class Comparison(Printed[ComparisonRow]):
    """Adapters side by side on one model. Prints as a table, and shows as one in a notebook.

    - `rows`: one per candidate, in the order in which they were asked for.
    - `steps`: how many steps each was trained at each learning rate.
    - `interrupted`: whether it was stopped by the keyboard, so that later candidates are missing.
    - `learning_rates`: those that were tried; empty with an optimiser of your own.
    """

    rows: tuple[ComparisonRow, ...]
    steps: int
    interrupted: bool = False
    learning_rates: tuple[float, ...] = ()

    def __repr__(self) -> str:
        names = ", ".join(row.name for row in self.rows)
        stopped = ", interrupted" if self.interrupted else ""
        return f"Comparison({self.steps} steps of {names or 'nothing'}{stopped})"

    def _table(self) -> Table:
        columns: dict[str, tuple[str, Callable[[ComparisonRow], float | None]]] = {
            "trainable": (",", lambda row: row.trainable),
            "rate": ("g", lambda row: row.learning_rate),
            "score": (".4g", lambda row: row.score),
            "final loss": (".4g", lambda row: row.final_loss),
            "best loss": (".4g", lambda row: row.best_loss),
            "ms/step": (".2f", lambda row: row.milliseconds),
            "temp MiB": (".3g", lambda row: row.temp_bytes and row.temp_bytes / 2**20),
            "compile s": (".2f", lambda row: row.compile_seconds),
        }
        at_rates = ""
        if len(self.learning_rates) > 1:
            rates = ", ".join(f"{rate:g}" for rate in self.learning_rates)
            at_rates = f" at the best of the rates {rates}"
        else:
            del columns["rate"]
        if all(row.score is None for row in self.rows):
            del columns["score"]

        def cells(row: ComparisonRow) -> list[str]:
            values = ((spec, value(row)) for spec, value in columns.values())
            return [row.name, *("-" if x is None else format(x, spec) for spec, x in values)]

        failed = [f"{row.name}: {row.error}" for row in self.rows if row.error is not None]
        stopped = ["Interrupted: unfinished candidates are missing."] if self.interrupted else []
        return table(
            f"{len(self.rows)} candidates, {self.steps:,} steps each{at_rates}",
            [("adapter", "left"), *((heading, "right") for heading in columns)],
            map(cells, self.rows),
            caption="\n".join([*stopped, *failed]),
        )

    def plot(self, path: str | PathLike[str] | None = None, *, times: bool = False) -> "Figure":
        """The losses on the way, and the final loss over the number of trained parameters.

        **Arguments:**

        - `path`: where to save the picture, in the format of the ending. Nowhere without it.
        - `times`: whether to draw one panel instead, for many candidates: a named point for each,
            at the score (without one, the final loss) over the trained parameters. Its colour is
            the time of a step.

        **Returns:** a `matplotlib.figure.Figure`, which shows itself in a notebook.

        **Raises:** `SelectionError` if no candidate was trained, or for the ending of `path`;
        `MissingLibraryError` without matplotlib (the extra `plot`); `OSError` if the file cannot be
        written.
        """
        new_picture(1, 1, path)  # an ending that is unknown is an error before anything is drawn
        from ._drawing import draw_comparison, draw_times

        trained = [row for row in self.rows if row.error is None]
        if not trained:
            raise SelectionError(f"No candidate was trained, so there is nothing to draw:\n{self}")
        return (draw_times if times else draw_comparison)(trained).saved(path)

    def to_csv(self, path: str | PathLike[str]) -> None:
        """Write the table to `path`, one line per candidate, all digits, nothing where it failed.

        **Raises:** `OSError` if the file cannot be written.
        """
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(_IN_FILES)
            for row in self.rows:
                writer.writerow([getattr(row, name) for name in _IN_FILES])


_IN_FILES = (
    *("name", "trainable", "learning_rate", "score", "final_loss", "best_loss"),
    *("milliseconds", "temp_bytes", "compile_seconds", "error"),
)
