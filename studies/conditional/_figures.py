"""The figure of the study: the error over the parameter, with the source unchanged."""

import pathlib
from typing import Any

from .._drawing import GREY, STYLES, pyplot, save
from ._methods import FILM, FULL, HEADLINE
from ._results import Study
from ._tasks import Task

_LABELS = {
    HEADLINE: "conditional adapter: trains {share} %",
    FILM.name: "full fine-tuning with FiLM",
    FULL: "full fine-tuning",
}


def draw(study: Study, path: pathlib.Path) -> None:
    """The error over the parameter, for each task, with the first number of samples.

    Points are the means over the seeds; bands go from the least to the most. Crosses are full
    fine-tuning at the value itself, with as many simulations of this value alone.
    """
    plt, tasks = pyplot(), study.plan.tasks
    figure, axes = plt.subplots(1, len(tasks), figsize=(10.4, 3), squeeze=False)
    for axis, task in zip(axes[0], tasks, strict=True):
        _draw_task(axis, study, task)
    axes[0][0].set_ylabel("relative error")
    handles = {
        label: handle
        for axis in axes[0]
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    if handles:
        names = list(handles)
        figure.legend(handles.values(), names, loc="outside lower center", ncols=len(names))
    save(plt, figure, path)


def _draw_task(axis: Any, study: Study, task: Task) -> None:
    from matplotlib.ticker import LogLocator

    samples = study.plan.effort.samples[0]
    order = sorted(range(len(task.values)), key=lambda index: task.values[index])
    values = [task.values[index] for index in order]
    for (name, label), (colour, marker) in zip(_LABELS.items(), STYLES, strict=True):
        cell = study.cell(task, name, samples)
        if cell is None:
            continue
        means = [cell.at(index) for index in order]
        low, high = ([end(mean.by_seed.values()) for mean in means] for end in (min, max))
        label = label.format(share=_shares(study, name, samples))
        axis.fill_between(values, low, high, color=colour, alpha=0.15, lw=0)
        axis.plot(values, [m.mean for m in means], marker=marker, color=colour, ms=4, label=label)
    targets = {value: study.target(task, samples, value) for value in task.inside}
    at_values = {value: mean.mean for value, mean in targets.items() if mean is not None}
    if at_values:
        axis.plot(
            *zip(*at_values.items(), strict=True), "x", color=GREY, label="full, at the value"
        )
    if task.name in study.untouched:
        untouched = study.untouched[task.name][0]
        errors = [untouched[index] for index in order]
        axis.plot(values, errors, color=GREY, ls=":", label="untouched")
    axis.axvspan(min(task.training), max(task.training), color=GREY, alpha=0.08, lw=0)
    axis.axvline(task.source, color=GREY, lw=0.6, ls="--")
    axis.set(yscale="log", xlabel=task.parameter, title=task.title)
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 3)))
    axis.yaxis.set_major_formatter("{x:g}")
    axis.yaxis.minorticks_off()
    if task.log:
        axis.set_xscale("log")
        axis.set_xticks(values[::3], [f"{value:g}" for value in values[::3]])
        axis.xaxis.minorticks_off()
    axis.grid(axis="y", color=GREY, alpha=0.25, lw=0.6)
    axis.spines[["top", "right"]].set_visible(False)


def _shares(study: Study, name: str, samples: int) -> str:
    cells = [study.cell(task, name, samples) for task in study.plan.tasks]
    shares = [100 * cell.share for cell in cells if cell is not None]
    return " to ".join(dict.fromkeys(f"{share:.1f}" for share in (min(shares), max(shares))))
