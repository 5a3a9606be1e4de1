"""The picture of a comparison, by matplotlib: imported when one is drawn."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axis import Axis
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from jno.lora.extending import new_picture

from ._comparison import ComparisonRow


def draw_comparison(rows: Sequence[ComparisonRow]) -> Any:
    """The losses on the way, and what each candidate reached for how many parameters."""
    figure = new_picture(10, 4.5)
    way, reached = figure.subplots(1, 2, width_ratios=(3, 2))
    # Without the ends of the colour map, which are hard to see on white.
    colors = colormaps["turbo"](np.linspace(0.08, 0.92, len(rows)))
    for row, color in zip(rows, colors, strict=True):
        way.plot(range(1, len(row.losses) + 1), row.losses, color=color, linewidth=1.2)
        if row.trainable:
            reached.scatter(row.trainable, row.final_loss, color=color, s=45, label=row.name)
        else:  # zero has no place on a logarithmic axis
            reached.axhline(row.final_loss, color=color, linestyle=":", label=row.name)
    numbers = [row.trainable for row in rows if row.trainable]
    if numbers and max(numbers) > 10 * min(numbers):
        reached.set_xscale("log")
        _round_labels(reached.xaxis, numbers)
    else:
        reached.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    losses = [loss for row in rows for loss in row.losses]
    if min(losses) > 0 and max(losses) > 3 * min(losses):
        for axes in (way, reached):
            axes.set_yscale("log")
            _round_labels(axes.yaxis, losses)
    way.xaxis.set_major_locator(MaxNLocator(integer=True))
    way.set_xlabel("step")
    way.set_ylabel("loss")
    reached.set_xlabel("trainable parameters")
    reached.set_ylabel("final loss")
    figure.legend(loc="outside right center", frameon=False)
    for axes in (way, reached):
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def draw_times(rows: Sequence[ComparisonRow]) -> Any:
    """Draw each candidate's result over its parameters, coloured by the time of a step."""
    figure = new_picture(9, 5.5)
    axes = figure.subplots()
    is_scored = all(row.score is not None for row in rows)
    reached = [row.score if is_scored else row.final_loss for row in rows]
    trained = [row.trainable or 0 for row in rows]
    times = [row.milliseconds or np.nan for row in rows]
    points = axes.scatter(trained, reached, c=times, cmap="viridis", norm="log", s=45, zorder=2)
    # Points that lie on each other have one text.
    named: dict[Any, list[int]] = {}
    for index, (x, y) in enumerate(zip(trained, reached, strict=True)):
        named.setdefault((round(np.log10(max(x, 1)), 1), round(y, 2)), []).append(index)
    for indices in named.values():
        at = (trained[indices[-1]], reached[indices[-1]])
        text = ", ".join(rows[index].name for index in indices)
        axes.annotate(text, at, (5, 3), textcoords="offset points", fontsize=8)
    # Linear up to one parameter, for a candidate that trains none.
    axes.set_xscale("symlog", linthresh=1)
    if not is_scored and min(reached) > 0:
        axes.set_yscale("log")
        _round_labels(axes.yaxis, reached)
    axes.set_xlabel("trainable parameters")
    axes.set_ylabel("score" if is_scored else "final loss")
    axes.spines[["top", "right"]].set_visible(False)
    figure.colorbar(points, label="milliseconds per step")
    return figure


def _round_labels(axis: Axis, values: Sequence[float]) -> None:
    """On a logarithmic axis, few labels: by default those within a decade lie on each other."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if max(values) < 100 * min(values) else (1,)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())
