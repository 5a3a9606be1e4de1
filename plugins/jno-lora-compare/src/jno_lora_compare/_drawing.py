"""The picture of a comparison. The module is imported when one is drawn, as it needs matplotlib."""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from ._row import ComparisonRow


def draw_comparison(figure: Figure, rows: Sequence[ComparisonRow]) -> None:
    """Draw the loss at each step, and the result against the number of trained parameters."""
    curves, results = figure.subplots(1, 2, width_ratios=(3, 2))
    # The ends of the colour map are hard to see on white.
    colors = colormaps["turbo"](np.linspace(0.08, 0.92, len(rows)))
    name, values = _results(rows)
    for row, value, color in zip(rows, values, colors, strict=True):
        curves.plot(range(1, len(row.losses) + 1), row.losses, color=color, linewidth=1.2)
        if row.trainable:
            results.scatter(row.trainable, value, color=color, s=45, label=row.name)
        else:  # a logarithmic axis has no zero
            results.axhline(value, color=color, linestyle=":", label=row.name)
    counts = [row.trainable for row in rows if row.trainable]
    if counts and max(counts) > 10 * min(counts):
        results.set_xscale("log")
        _round_labels(results.xaxis, counts)
    else:
        results.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    losses = [loss for row in rows for loss in row.losses]
    if min(losses) > 0 and max(losses) > 3 * min(losses):
        for axes in (curves,) if name == "score" else (curves, results):
            axes.set_yscale("log")
            _round_labels(axes.yaxis, losses)
    curves.xaxis.set_major_locator(MaxNLocator(integer=True))
    curves.set(xlabel="step", ylabel="training loss")
    results.set(xlabel="trainable parameters", ylabel=name)
    figure.legend(loc="outside right center", frameon=False)
    for axes in (curves, results):
        axes.spines[["top", "right"]].set_visible(False)


def draw_times(figure: Figure, rows: Sequence[ComparisonRow]) -> None:
    """Draw each candidate's result against its parameters, coloured by the time of a step."""
    axes = figure.subplots()
    name, results = _results(rows)
    trained = [row.trainable or 0 for row in rows]
    times = [row.milliseconds or np.nan for row in rows]
    points = axes.scatter(trained, results, c=times, cmap="viridis", norm="log", s=45, zorder=2)
    labels: dict[tuple[float, float], tuple[str, tuple[int, float]]] = {}
    for row, x, y in zip(rows, trained, results, strict=True):
        cell = (round(math.log10(max(x, 1)), 1), round(y, 2))  # points of a cell share a label
        text = f"{labels[cell][0]}, {row.name}" if cell in labels else row.name
        labels[cell] = (text, (x, y))
    for text, position in labels.values():
        axes.annotate(text, position, (5, 3), textcoords="offset points", fontsize=8)
    # Linear up to one parameter, so that a candidate may have no trained parameters.
    axes.set_xscale("symlog", linthresh=1)
    if name == "final loss" and min(results) > 0:
        axes.set_yscale("log")
        _round_labels(axes.yaxis, results)
    axes.set(xlabel="trainable parameters", ylabel=name)
    axes.spines[["top", "right"]].set_visible(False)
    figure.colorbar(points, label="milliseconds per step")


def _results(rows: Sequence[ComparisonRow]) -> tuple[str, list[float]]:
    """The name and the values of the measure that the candidates are judged by."""
    scores = [row.score for row in rows if row.score is not None]
    if len(scores) == len(rows):
        return "score", scores
    return "final loss", [row.final_loss for row in rows if row.final_loss is not None]


def _round_labels(axis: Axis, values: Sequence[float]) -> None:
    """Put few labels on a logarithmic axis, because matplotlib's labels in a decade overlap."""
    subs = (1, 2, 5) if max(values) < 100 * min(values) else (1,)
    axis.set_major_locator(LogLocator(subs=subs))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())
