"""The demo's plot: the cost of each candidate, and its accuracy in both domains."""

import math
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes

from jno.lora.extending import new_picture

from ._candidates import Outcome

# The markers differ in lightness and shape too, not only in hue.
_TARGET, _SOURCE, _QUIET = "#0b5fa5", "#e08a00", "#b8b8b8"


def save_plot(outcomes: Sequence[Outcome], path: Path) -> None:
    """Write a PNG with one row per candidate, the most trainable parameters on top."""
    # In a scatter plot, methods with equal counts would overlap.
    rows = sorted(outcomes, key=lambda outcome: outcome.row.trainable or 0)
    figure = new_picture(10, 5.6)
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(2, 3))
    _draw_costs(left, rows)
    _draw_accuracies(right, rows)
    for axes in (left, right):
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(axis="y", length=0)
    figure.suptitle(
        "Adapting to rotated and noisy digits: parameters, and accuracy in both domains"
    )
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(path)


def _draw_costs(axes: Axes, rows: Sequence[Outcome]) -> None:
    heights = range(len(rows))
    # A logarithmic axis has no zero: zero gets no bar, only its number.
    trainable = [row.row.trainable or 0 for row in rows]
    bars = axes.barh(heights, [max(number, 1) for number in trainable], color=_QUIET, height=0.6)
    axes.bar_label(bars, [f"{row.row.trainable:,} ({row.share:.1%})" for row in rows], padding=4)
    axes.set_xscale("log")
    most = max(trainable)
    axes.set_xlim(1, most**1.8)  # room for the numbers
    axes.set_xticks([10**power for power in range(1 + int(math.log10(most)))])
    axes.minorticks_off()
    axes.set_yticks(heights, [row.name for row in rows])
    axes.set_xlabel("trainable parameters (share of the model)")


def _draw_accuracies(axes: Axes, rows: Sequence[Outcome]) -> None:
    heights = range(len(rows))
    target = [100 * row.after.target for row in rows]
    source = [100 * row.after.source for row in rows]
    axes.hlines(heights, target, source, color=_QUIET, linewidth=1.5, zorder=1)
    before = rows[0].before
    for value, color in ((before.target, _TARGET), (before.source, _SOURCE)):
        axes.axvline(100 * value, color=color, linestyle=":", linewidth=1.2, zorder=0)
    axes.scatter(target, heights, color=_TARGET, s=55, label="target domain (rotated, noisy)")
    axes.scatter(source, heights, color=_SOURCE, s=55, marker="D", label="source domain (upright)")
    axes.plot([], [], color="black", linestyle=":", linewidth=1.2, label="before adapting")
    axes.set_xlim(min(*target, *source) - 4, 101)
    axes.set_xlabel("accuracy on held-out scans after adapting (%)")
