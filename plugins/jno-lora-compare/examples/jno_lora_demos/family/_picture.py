"""The picture of the demo."""

from pathlib import Path
from typing import Any

import numpy as np

from jno_lora_combine import new_picture

from .. import burgers
from .._style import GREY, STYLE, save
from ._data import TESTED, TRAINING
from ._demo import Demo


def draw(demo: Demo, path: Path) -> None:
    """Draw the errors against the viscosity, and the recovered viscosities, into a file.

    The band of the last candidate covers 80 % of the simulations. The background is transparent,
    and all colours are readable on white and on black.
    """
    figure = new_picture(10, 3.8, path)
    from matplotlib import colormaps, rc_context

    colors = [GREY, *colormaps["tab10"].colors]  # pyright: ignore[reportAttributeAccessIssue]
    with rc_context(STYLE):
        curves, recovered = figure.subplots(1, 2, width_ratios=(5, 4))
        for number, row in enumerate(demo.rows):
            is_last = number == len(demo.rows) - 1
            line, width = "o-" if number else ":", 2.2 if is_last else 1.4
            curves.plot(
                TESTED, row.errors, line, color=colors[number], lw=width, ms=4, label=row.name
            )
            if is_last:
                curves.fill_between(TESTED, *row.band, color=colors[number], alpha=0.15, lw=0)
        _scale(curves, demo)
        _recovered(recovered, demo, colors[len(demo.rows) - 1])
        curves.legend()
        save(figure, path)


def draw_example(demo: Demo, path: Path) -> None:
    """Draw the field at an unseen viscosity beside the predictions, and their errors, into a file.

    The background is transparent, and all colours are readable on white and on black.
    """
    figure = new_picture(10, 3.4, path)
    from matplotlib import colormaps, rc_context

    colors = colormaps["tab10"].colors  # pyright: ignore[reportAttributeAccessIssue]
    example, x = demo.example, np.linspace(0, 2 * np.pi, burgers.GRID, endpoint=False)
    names = [row.name for row in demo.rows]
    with rc_context(STYLE):
        fields, gaps = figure.subplots(1, 2)
        fields.plot(x, example.start, ":", color=GREY, lw=1, label="time 0")
        fields.plot(x, example.solution, color=GREY, lw=2.4, label="solution")
        for name, field in example.predicted.items():
            number = names.index(name)
            color, line = (GREY, "--") if number == 0 else (colors[number - 1], "-")
            fields.plot(x, field, line, color=color, lw=1.2, label=name)
            gaps.plot(x, field - example.solution, line, color=color, lw=1.4, label=name)
        fields.set(xlabel="x", title=f"a field at viscosity {example.viscosity:g}, unseen")
        gaps.set(xlabel="x", title="prediction minus solution")
        fields.legend()
        save(figure, path)


def _scale(axes: Any, demo: Demo) -> None:
    axes.axvline(burgers.SOURCE, color=GREY, lw=0.8, ls="--")
    axes.annotate(
        "pretrained here",
        (burgers.SOURCE, 1),
        (-4, -4),
        xycoords=("data", "axes fraction"),
        textcoords="offset points",
        color=GREY,
        fontsize="x-small",
        ha="right",
        va="top",
    )
    low, high = _limits([row.errors for row in demo.rows])
    ticks = [t for t in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1) if low <= t <= high]
    axes.set(
        xscale="log", yscale="log", xlabel="viscosity", title="relative error, new simulations"
    )
    axes.set(ylim=(low, high))
    axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_xticks(TESTED, [f"{nu:g}" for nu in TESTED])
    # Mark the training values on the axis.
    axes.plot(TRAINING, [low * 1.05] * len(TRAINING), "|", color=GREY, ms=9)
    axes.minorticks_off()


def _limits(values: Any) -> tuple[float, float]:
    return 0.8 * float(np.min(values)), 1.25 * float(np.max(values))


def _recovered(axes: Any, demo: Demo, color: Any) -> None:
    ends = [0.02, 1.1 * burgers.SOURCE]
    axes.plot(ends, ends, color=GREY, lw=0.8)
    for nu, values in zip(TESTED, demo.recovered, strict=True):
        axes.plot([nu] * len(values), values, "o", color=color, ms=3, alpha=0.5, mew=0)
    axes.set(xlabel="true viscosity", title="viscosity from one simulation")
    axes.set_xticks(TESTED, [f"{nu:g}" for nu in TESTED])
    axes.tick_params("x", labelsize="small")
