"""The demo's plot: what each way of adapting costs, and what it gains and loses."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ._candidates import Outcome

_SOURCE, _TARGET, _BEFORE = "#9a6a00", "#0b6fa4", "#8c8c8c"


def save_plot(outcomes: Sequence[Outcome], path: Path) -> None:
    """Write a PNG: one row per candidate, those that train most on top.

    On the left the trainable parameters, on a logarithmic axis; on the right the accuracies, with
    a line from each one before to the one after.
    """
    rows = sorted(outcomes, key=lambda outcome: outcome.trainable)
    heights = range(len(rows))
    # No pyplot: it would choose a backend for the whole process, and keep the figure.
    figure = Figure(figsize=(10, 5.2), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    cost, accuracy = figure.subplots(1, 2, sharey=True, width_ratios=(2, 3))
