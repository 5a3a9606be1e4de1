"""Write the tables and the figure of `docs/evidence/equivariant-study.md` from the records."""

import pathlib

from .._drawing import GREY, STYLES, pyplot, save
from .._pages import DOCS, fill, filled
from ._results import Cell, Study, load
from ._runs import NONE
from ._ways import FULL_WAY, GAINS, HEAD, LORA, MMEA, WAYS

_STYLES = dict(
    zip((FULL_WAY, LORA, GAINS, MMEA, HEAD), (*STYLES, ("#CC79A7", "D"), (GREY, "x")), strict=True)
)


def write_page(results: pathlib.Path, docs: pathlib.Path = DOCS) -> pathlib.Path:
    """Fill the marked sections of `equivariant-study.md`, draw its figure, and return its path."""
    study = load(results)
    page = docs / "equivariant-study.md"
    draw(study, docs / "images" / "equivariant-study.svg")
    fill(page, {"goal": _goal(study), "target": _target(study), "source": _source(study)})
    return page


def draw(study: Study, path: pathlib.Path) -> None:
    """The force error over the number of frames, and over the error on other materials."""
    from matplotlib.ticker import FixedLocator, NullLocator

    plt = pyplot()
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.2), sharey=True)
    for way, (colour, marker) in _STYLES.items():
        numbers = [n for n in study.numbers() if (way, n) in study.cells]
        if not numbers:
            continue
        cells = [study.cells[way, n] for n in numbers]
        forces = [cell.mean("test force") for cell in cells]
        low, high = zip(*(cell.spread("test force") for cell in cells), strict=True)
        axes[0].fill_between(numbers, low, high, color=colour, alpha=0.15, lw=0)
        axes[0].plot(numbers, forces, marker=marker, color=colour, ms=4, label=way)
        source = [cell.mean("far force") for cell in cells]
        axes[1].plot(source, forces, marker=marker, color=colour, ms=4)
    axes[0].set(xlabel="frames", ylabel="force error, meV/Å", yscale="log", xticks=study.numbers())
    axes[1].set(xlabel="force error on salts and semiconductors, meV/Å", xscale="log")
    before = study.before("far force")
    if before is not None:
        axes[1].axvline(before, color=GREY, lw=0.8, ls="--")
    for axis, ticks in (
        (axes[0].yaxis, (60, 80, 100, 150, 200)),
        (axes[1].xaxis, (50, 100, 200, 400)),
    ):
        axis.set_major_formatter("{x:g}")
        axis.set_major_locator(FixedLocator(ticks))
        axis.set_minor_locator(NullLocator())
    for axis in axes:
        axis.grid(axis="y", color=GREY, alpha=0.25, lw=0.6)
        axis.spines[["top", "right"]].set_visible(False)
    if axes[0].get_legend_handles_labels()[0]:
        figure.legend(loc="outside lower center", ncols=len(_STYLES))
    save(plt, figure, path)


def _goal(study: Study) -> str:
    words = {True: "yes", False: "**no**", None: "open: runs are missing"}
    rows = [f"| {text} | {value} | {words[met]} |" for text, value, met in study.goal()]
    ends, number = study.edges()
    counts = [len(c.records) for (way, _), c in study.cells.items() if way != NONE]
    note = (
        f"{study.missing()} of the {study.missing() + sum(counts)} runs at chosen rates are "
        f"missing. {ends} of the {number} chosen rates are an end of their grid after the grid "
        "grew. The measured pairs are LoRA's and full fine-tuning's means over the seeds that both "
        "have, in meV/Å."
    )
    return _table("| goal | measured | met |", rows) + "\n" + filled(note)


def _target(study: Study) -> str:
    rows = []
    for way in (NONE, *(way.name for way in WAYS)):
        cells = [study.cells.get((way, n)) for n in study.numbers()]
        if not any(cells):
            continue
        trained = next(cell for cell in cells if cell).records[0]["trained"]
        columns = [_mean(cell, name) for cell in cells for name in ("test force", "test energy")]
        rates = ", ".join(f"{c.records[0]['rate']:g}" if c else "-" for c in cells)
        seeds = ", ".join(str(len(c.records)) if c else "0" for c in cells)
        rates = "" if way == NONE else rates
        rows.append(f"| {way} | {trained:,} | {' | '.join(columns)} | {rates} | {seeds} |")
    heads = " | ".join(f"{n} frames: force | energy" for n in study.numbers())
    return _table(f"| way | trained | {heads} | rates | seeds |", rows)


def _source(study: Study) -> str:
    names = ("far force", "far energy", "near force", "near energy")
    rows = []
    if study.before(names[0]) is not None:
        values = " | ".join(_number(study.before(name) or 0.0) for name in names)
        rows.append(f"| before | {values} |")
    for way in WAYS:
        cells = [study.cells.get((way.name, n)) for n in study.numbers()]
        if any(cells):
            columns = " | ".join(
                ", ".join(_number(cell.mean(name)) if cell else "-" for cell in cells)
                for name in names
            )
            rows.append(f"| {way.name} | {columns} |")
    head = "| way | salts, semiconductors: force | energy | other metals: force | energy |"
    return _table(head, rows)


def _mean(cell: Cell | None, name: str) -> str:
    if cell is None:
        return "-"
    low, high = cell.spread(name)
    mean = _number(cell.mean(name))
    return mean if low == high else f"{mean} ({_number(low)} to {_number(high)})"


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 1 else f"{value:.2f}"


def _table(head: str, rows: list[str]) -> str:
    if not rows:
        return "Not run yet.\n"
    return "\n".join([head, "|---" * (head.count("|") - 1) + "|", *rows]) + "\n"
