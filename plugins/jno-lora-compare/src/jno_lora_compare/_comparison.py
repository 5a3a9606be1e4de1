"""The result of a comparison: a row per candidate, as a table, a picture or a file."""

import csv
import dataclasses
from collections.abc import Callable
from os import PathLike
from typing import TYPE_CHECKING

from jno.lora import SelectionError, Table
from jno.lora.extending import Printed, table
from jno_lora_combine import new_picture

from ._row import ComparisonRow

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclasses.dataclass(frozen=True, repr=False)
class Comparison(Printed[ComparisonRow]):
    """Adapters side by side on one model. Prints as a table, and shows as one in a notebook.

    - `rows`: one row per candidate, in the order of `wrappers`.
    - `steps`: how many steps each candidate trained at each learning rate.
    - `interrupted`: whether Ctrl-C stopped the comparison, so that later candidates are missing.
    - `learning_rates`: the rates that were tried; empty with your own optimiser.
    - `kept_error`: the mean error on `keep` before training; `None` without `keep`.
    """

    rows: tuple[ComparisonRow, ...]
    steps: int
    interrupted: bool = False
    learning_rates: tuple[float, ...] = ()
    kept_error: float | None = None

    def __repr__(self) -> str:
        names = ", ".join(row.name for row in self.rows)
        stopped = ", interrupted" if self.interrupted else ""
        return f"Comparison({self.steps} steps of {names or 'nothing'}{stopped})"

    def _table(self) -> Table:
        columns: dict[str, tuple[str, Callable[[ComparisonRow], float | None]]] = {
            "trainable": (",", lambda row: row.trainable),
            "rate": ("g", lambda row: row.learning_rate),
            "score": (".4g", lambda row: row.score),
            "kept before": (".4g", lambda row: None if row.error else self.kept_error),
            "kept after": (".4g", lambda row: row.kept_error),
            "final loss": (".4g", lambda row: row.final_loss),
            "best loss": (".4g", lambda row: row.best_loss),
            "ms/step": (".2f", lambda row: row.milliseconds),
            "temp MiB": (".3g", lambda row: row.temp_bytes and row.temp_bytes / 2**20),
            "compile s": (".2f", lambda row: row.compile_seconds),
        }
        rates = ", ".join(f"{rate:g}" for rate in self.learning_rates)
        at_rates = f" at the best of the rates {rates}" if len(self.learning_rates) > 1 else ""
        if not at_rates:
            del columns["rate"]
        if all(row.score is None for row in self.rows):
            del columns["score"]
        if self.kept_error is None:
            del columns["kept before"], columns["kept after"]

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
        """Draw the training loss at each step, and the result against the trained parameters.

        The result is the score, or the final loss if no `score` was given.

        **Arguments:**

        - `path`: a file for the picture, in the format of its ending; by default no file.
        - `times`: whether to draw, for many candidates, only a point for each: the result over the
            trained parameters, coloured by the time of a step.

        **Returns:** a `matplotlib.figure.Figure`, which shows itself in a notebook.

        **Raises:** `SelectionError` if no candidate was trained, or for the ending of `path`;
        `MissingLibraryError` without matplotlib (the extra `plot`); `OSError` if the file cannot be
        written.
        """
        figure = new_picture(*(9, 5.5) if times else (10, 4.5), path)
        from ._drawing import draw_comparison, draw_times

        trained = [row for row in self.rows if row.error is None]
        if not trained:
            raise SelectionError(f"No candidate was trained, so there is nothing to draw:\n{self}")
        (draw_times if times else draw_comparison)(figure, trained)
        return figure.saved(path)

    def to_csv(self, path: str | PathLike[str]) -> None:
        """Write the table to `path`, a line per candidate, with all digits; failures are empty.

        **Raises:** `OSError` if the file cannot be written.
        """
        names = [field.name for field in dataclasses.fields(ComparisonRow)]
        columns = [name for name in names if name not in ("losses", "model")]
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(columns)
            writer.writerows([getattr(row, name) for name in columns] for row in self.rows)
