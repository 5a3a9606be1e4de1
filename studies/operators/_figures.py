"""The figures of the study: SVG without a background, for light and dark pages."""

import pathlib
from typing import Any

from ._results import Row, Study, geometric_mean

GREY = "#808080"  # is read on white and on black
# Okabe and Ito's colours, which colour-blind readers can tell apart.
COLOURS = ("#009E73", "#56B4E9", "#E69F00")
WORST = 1.3
LABELS = {"full": "full fine-tuning", "lora": "LoRA, rank 2"}


def draw_few(study: Study, rows: list[Row], path: pathlib.Path) -> None:
    """The error by number of samples: the best small adapter, LoRA, full fine-tuning, untouched.

    The best is the one with the lowest error at few samples, among those that train at most 10 % of
    each model.
    """
    plt, plan = _pyplot(), study.plan
    from matplotlib.ticker import LogLocator

    best = next((row.name for row in rows if max(row.shares) <= 0.1), "lora")
    figure, axes = plt.subplots(
        1, len(plan.problems), figsize=(11, 3), layout="constrained", squeeze=False
    )
    for axis, problem in zip(axes[0], plan.problems, strict=True):
        for name, colour in zip(dict.fromkeys([best, "lora", "full"]), COLOURS, strict=False):
            found = {n: study.cell(problem, name, n) for n in plan.effort.samples}
            cells = {n: cell for n, cell in found.items() if cell}
            means = [cell.mean for cell in cells.values()]
            axis.plot(list(cells), means, "o-", color=colour, ms=4, label=LABELS.get(name, name))
            low = [min(cell.errors) for cell in cells.values()]
            high = [max(cell.errors) for cell in cells.values()]
            axis.fill_between(list(cells), low, high, color=colour, alpha=0.15, lw=0)
        none = study.plain.get((problem.name, "none"))
        if none is not None:
            axis.axhline(none, color=GREY, ls=":", label="untouched")
        axis.set(xscale="log", yscale="log", xlabel="simulations", title=problem.title)
        axis.set_xticks(plan.effort.samples, [str(n) for n in plan.effort.samples])
        axis.minorticks_off()
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter("{x:g}")
    axes[0][0].set_ylabel("relative error")
    handles = axes[0][0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=4)
    _save(plt, figure, path)


def draw_all(rows: list[Row], path: pathlib.Path) -> None:
    """The trained share, and the error over full fine-tuning's with few samples, up to `WORST`."""
    plt = _pyplot()
    figure, axis = plt.subplots(figsize=(8, 5), layout="constrained")
    for row in rows:
        share, ratio = 100 * geometric_mean(row.shares), geometric_mean(row.few)
        if ratio > WORST:
            continue
        axis.plot(share, ratio, "o", color=COLOURS[0], ms=4)
        axis.annotate(row.name, (share, ratio), (3, 3), textcoords="offset points", fontsize=7)
    axis.axhline(1, color=GREY, lw=0.8)
    axis.set(xscale="log", xlabel="trained parameters, %")
    axis.xaxis.set_major_formatter("{x:g}")
    axis.set_ylabel("error over that of full fine-tuning, at most 16 samples")
    _save(plt, figure, path)


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = ("text.color", "axes.labelcolor", "axes.edgecolor", "axes.titlecolor")
    plt.rcParams.update(dict.fromkeys((*names, "xtick.color", "ytick.color"), GREY))
    # The same data give the same file.
    plt.rcParams.update({"svg.hashsalt": "jno-lora", "legend.frameon": False})
    return plt


def _save(plt: Any, figure: Any, path: pathlib.Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, transparent=True, metadata={"Date": None})
    plt.close(figure)
