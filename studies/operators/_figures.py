"""The figures of the study: SVG without a background, for light and dark pages."""

import pathlib
from typing import TYPE_CHECKING, Any

from ._problems import FULL, PROBLEMS

if TYPE_CHECKING:
    from ._report import Row, Study

GREY = "#808080"  # is read on white and on black
# Okabe and Ito's colours, which colour-blind readers can tell apart.
COLOURS = ("#009E73", "#56B4E9", "#E69F00")


def draw_few(study: "Study", rows: "list[Row]", path: pathlib.Path) -> None:
    """The error by number of samples: the best small adapter, LoRA, full fine-tuning, untouched."""
    plt = _pyplot()
    best = next((row.name for row in rows if max(row.shares) <= 0.1 and row.name != "full"), "lora")
    names = list(dict.fromkeys([best, "lora", "full"]))
    labels = {"full": "full fine-tuning", "lora": "LoRA, rank 2"}
    figure, axes = plt.subplots(1, len(PROBLEMS), figsize=(11, 3), layout="constrained")
    for axis, problem in zip(axes, PROBLEMS, strict=True):
        for name, colour in zip(names, COLOURS, strict=False):
            cells = {n: study.cell(problem, name, n) for n in FULL.samples}
            there = {n: cell for n, cell in cells.items() if cell}
            means = [cell.mean for cell in there.values()]
            label = labels.get(name, name)
            axis.plot(list(there), means, "o-", color=colour, ms=4, lw=1.5, label=label)
            low = [min(cell.errors) for cell in there.values()]
            high = [max(cell.errors) for cell in there.values()]
            axis.fill_between(list(there), low, high, color=colour, alpha=0.15, lw=0)
        none = study.plain.get((problem.name, "none"))
        if none is not None:
            axis.axhline(none, color=GREY, ls=":", label="untouched")
        axis.set(xscale="log", yscale="log", xlabel="simulations", title=problem.title)
        axis.set_xticks(FULL.samples, [str(n) for n in FULL.samples])
        axis.minorticks_off()
    axes[0].set_ylabel("relative L2 error")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    _save(plt, figure, path)


def draw_all(rows: "list[Row]", path: pathlib.Path) -> None:
    """Every method: the trained share, and the error over full fine-tuning's with few samples."""
    from ._report import geometric_mean

    plt = _pyplot()
    figure, axis = plt.subplots(figsize=(8, 5), layout="constrained")
    for row in rows:
        share, ratio = 100 * geometric_mean(row.shares), geometric_mean(row.few)
        axis.plot(share, ratio, "o", color=COLOURS[0], ms=4)
        axis.annotate(row.name, (share, ratio), (3, 3), textcoords="offset points", fontsize=7)
    axis.axhline(1, color=GREY, lw=0.8)
    axis.set(xscale="log", yscale="log", xlabel="trained parameters, %")
    axis.set_ylabel("error / that of full fine-tuning, at most 16 samples")
    _save(plt, figure, path)


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    grey = ("text", "axes.label", "axes.edge", "xtick", "ytick")
    names = [
        f"{name}color" if "edge" in name or "label" in name else f"{name}.color" for name in grey
    ]
    plt.rcParams.update({name: GREY for name in names})
    # Text as text, and the same file for the same data.
    plt.rcParams.update(
        {"svg.fonttype": "none", "svg.hashsalt": "jno-lora", "legend.frameon": False}
    )
    return plt


def _save(plt: Any, figure: Any, path: pathlib.Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, transparent=True, metadata={"Date": None})
    plt.close(figure)
