"""The figures of the study."""

import pathlib
from typing import Any

from .._drawing import GREY, STYLES, pyplot, save
from ._labels import name_points
from ._problems import Problem
from ._results import Row, Study, geometric_mean

WORST = 1.3
LABELS = {"full": "full fine-tuning", "lora": "LoRA, rank 2"}


def draw_few(study: Study, rows: list[Row], path: pathlib.Path) -> None:
    """The error by number of samples: the best small adapter, LoRA, full fine-tuning, untouched.

    The best small adapter has the lowest error at few samples, among the methods that train at most
    10 % of each model.
    """
    plt, plan = pyplot(), study.plan
    best = next((row.name for row in rows if max(row.shares) <= 0.1), "lora")
    figure, axes = plt.subplots(1, len(plan.problems), figsize=(10.4, 3), squeeze=False)
    for axis, problem in zip(axes[0], plan.problems, strict=True):
        _draw_problem(axis, study, problem, list(dict.fromkeys([best, "lora", "full"])))
    axes[0][0].set_ylabel("relative error")
    handles, names = axes[0][0].get_legend_handles_labels()
    labels = [_label(name, rows) for name in names]
    figure.legend(handles, labels, loc="outside lower center", ncols=4)
    save(plt, figure, path)


def _draw_problem(axis: Any, study: Study, problem: Problem, methods: list[str]) -> None:
    """The curves of one problem: the mean over the seeds, with a band from least to most."""
    from matplotlib.ticker import LogLocator

    for order, (name, (colour, marker)) in enumerate(zip(methods, STYLES, strict=False)):
        cells = {n: study.cell(problem, name, n) for n in study.plan.effort.samples}
        measured = {n: cell for n, cell in cells.items() if cell}
        samples, means = list(measured), [cell.mean for cell in measured.values()]
        low = [min(cell.errors) for cell in measured.values()]
        high = [max(cell.errors) for cell in measured.values()]
        above = len(methods) - order  # the best method is drawn over the others
        axis.fill_between(samples, low, high, color=colour, alpha=0.15, lw=0)
        axis.plot(samples, means, marker=marker, color=colour, ms=4, label=name, zorder=2 + above)
    untouched = study.plain.get((problem.name, "none"))
    if untouched is not None:
        axis.axhline(untouched, color=GREY, ls=":", label="untouched")
    axis.set(xscale="log", yscale="log", xlabel="simulations", title=problem.title)
    axis.set_xticks(study.plan.effort.samples, [str(n) for n in study.plan.effort.samples])
    axis.minorticks_off()
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
    axis.yaxis.set_major_formatter("{x:g}")
    axis.grid(axis="y", color=GREY, alpha=0.25, lw=0.6)
    axis.spines[["top", "right"]].set_visible(False)


def _label(name: str, rows: list[Row]) -> str:
    """The method's name, with the fraction of the parameters that it trains in the problems."""
    shares = next((row.shares for row in rows if row.name == name), [1.0])
    if min(shares) == 1:
        return LABELS.get(name, name)
    ends = dict.fromkeys(f"{100 * share:.0f}" for share in (min(shares), max(shares)))
    return f"{LABELS.get(name, name)}: trains {' to '.join(ends)} %"


def draw_all(rows: list[Row], path: pathlib.Path) -> None:
    """The trained fraction, and the ratio to full fine-tuning's error with few samples.

    Methods with a ratio above `WORST` are left out.
    """
    plt = pyplot()
    figure, axis = plt.subplots(figsize=(8, 6))
    ratios = {row.name: geometric_mean(row.few) for row in rows}
    points = {
        row.name: (100 * geometric_mean(row.shares), ratios[row.name])
        for row in rows
        if ratios[row.name] <= WORST
    }
    axis.plot(*zip(*points.values(), strict=True), "o", color=STYLES[0][0], ms=4)
    axis.axhline(1, color=GREY, lw=0.8)
    axis.set(xscale="log", xlabel="trained parameters, %")
    axis.margins(x=0.1)  # room for names
    axis.xaxis.set_major_formatter("{x:g}")
    axis.set_ylabel("error / error of full fine-tuning, at most 16 samples")
    figure.draw_without_rendering()  # fixes the layout
    name_points(axis, points)
    save(plt, figure, path)
