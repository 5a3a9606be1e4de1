"""Pictures, by matplotlib. This module is imported when a picture is drawn."""

import io
import math
import os
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from .._errors import SelectionError, imported_for

with imported_for("A picture", "plot", "matplotlib"):
    from matplotlib import colormaps
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

# With more matrices, only some have a label.
_MOST_LABELS = 60


class Picture(Figure):
    """A figure that shows itself in a notebook and needs no screen.

    It does not use pyplot, which would choose a backend for the process, and keep the figure.
    """

    def __init__(self, width: float, height: float):
        super().__init__(figsize=(width, height), dpi=150, layout="constrained")

    def _repr_png_(self) -> bytes:
        out = io.BytesIO()
        self.savefig(out, format="png")
        return out.getvalue()

    def saved(self, path: str | PathLike[str] | None) -> "Picture":
        """This figure, written to `path` if there is one."""
        if path is not None:
            self.savefig(path)
        return self


def check_ending(path: str | PathLike[str] | None) -> None:
    """**Raises:** `SelectionError` for a `path` with an ending that matplotlib does not know."""
    if path is None:
        return
    endings = [f".{name}" for name in sorted(Picture(1, 1).canvas.get_supported_filetypes())]
    if Path(path).suffix.lower() not in endings:
        raise SelectionError(
            f"No picture can be saved as {os.fspath(path)!r}. Let it end in one of "
            f"{', '.join(endings)}."
        )


def draw_effects(rows: Sequence[Any]) -> Picture:
    """Draw size, effective rank and singular values of each update, the first layer on top."""
    figure = Picture(11, min(2.2 + 0.17 * len(rows), 14))
    sizes, ranks, spectra = figure.subplots(1, 3, width_ratios=(2, 2, 3))
    # Without the ends of the map, which are hard to see on white.
    colors = colormaps["turbo"](np.linspace(0.08, 0.92, len(rows)))
    heights = range(len(rows))
    for axes, name in ((sizes, "relative_norm"), (ranks, "effective_rank")):
        lengths = np.asarray([getattr(row, name) for row in rows])
        # A change relative to a weight of 0 is infinite, and gets no bar.
        axes.barh(heights, np.where(np.isfinite(lengths), lengths, np.nan), color=colors)
        axes.set_ylim(len(rows) - 0.4, -0.6)
    step = math.ceil(len(rows) / _MOST_LABELS)
    sizes.set_yticks(heights[::step], [row.label for row in rows[::step]], fontsize="x-small")
    ranks.set_yticks([])
    for row, color in zip(rows, colors, strict=True):
        values = np.asarray(row.singular_values)
        values = values[(values > 0) & np.isfinite(values)]
        spectra.plot(range(1, len(values) + 1), values, ".-", color=color, linewidth=1)
    if any(any(value > 0 for value in row.singular_values) for row in rows):
        spectra.set_yscale("log")
    spectra.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    sizes.set_xlabel("‖ΔW‖ / ‖W‖")
    ranks.set_xlabel("effective rank of ΔW")
    spectra.set_xlabel("number of the singular value")
    spectra.set_ylabel("singular values of ΔW")
    for axes in (sizes, ranks, spectra):
        axes.spines[["top", "right"]].set_visible(False)
    return figure
