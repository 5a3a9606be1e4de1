"""Ratios as points with their quartiles, targets as strokes: one SVG for each group of cases."""

import pathlib
from typing import Any

from ._tables import Group, Record, aim_of, heading

# Okabe and Ito's colours, which colour-blind readers can tell apart.
STYLES = [("#0072B2", "o"), ("#E69F00", "s"), ("#009E73", "D"), ("#CC79A7", "^"), ("#D55E00", "v")]


def plot(records: list[Record], group: Group, path: pathlib.Path) -> bool:
    """Draw the first table of a group. Returns whether the table has a ratio to draw."""
    import matplotlib

    matplotlib.use("Agg")
    # The same data should give the same file.
    matplotlib.rcParams["svg.hashsalt"] = "jno-lora"
    import matplotlib.pyplot as plt
    from matplotlib.ticker import LogLocator

    columns = [column for column in group.tables[0] if column[1] is not None]
    series = {column: _points(records, column) for column in columns}
    series = {column: points for column, points in series.items() if points}
    if not series:
        return False
    height = 1.2 + len(records) * (0.12 + 0.13 * len(series))
    figure, axes = plt.subplots(figsize=(8, height), layout="constrained")
    for index, (column, points) in enumerate(series.items()):
        colour, marker = STYLES[index % len(STYLES)]
        shift = (index - (len(series) - 1) / 2) * 0.8 / len(series)
        rows = [row + shift for row, *_ in points]
        medians = [ratio["median"] for _, ratio, _ in points]
        below = [max(0.0, ratio["median"] - ratio["q1"]) for _, ratio, _ in points]
        above = [max(0.0, ratio["q3"] - ratio["median"]) for _, ratio, _ in points]
        axes.errorbar(
            medians,
            rows,
            xerr=[below, above],
            fmt=marker,
            color=colour,
            markersize=5,
            label=heading(*column),
        )
        aims = [(most, row + shift) for row, _, most in points if most is not None]
        if aims:
            axes.plot(*zip(*aims, strict=True), "|", color=colour, markersize=11, mew=2, alpha=0.6)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("")
    axes.set_yticks(range(len(records)), [record["label"] for record in records])
    axes.set_ylim(len(records) - 0.5, -0.5)
    axes.set_xlabel("ours / other: median and quartiles (left of 1: ours takes less); |: target")
    axes.grid(axis="x", which="both", alpha=0.25)
    axes.set_title(group.title)
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
    return True


def _points(records: list[Record], column: Any) -> list[tuple[int, Record, float | None]]:
    measure, over = column
    points = []
    for row, record in enumerate(records):
        ratio = record["ratios"].get(measure, {}).get(over)
        if ratio is not None and ratio["median"] > 0:
            points.append((row, ratio, aim_of(record, measure, over)))
    return points
