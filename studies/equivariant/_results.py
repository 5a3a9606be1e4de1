"""Results from the records: the chosen rates, means over the seeds, the goal."""

import pathlib
import statistics
from collections import defaultdict
from dataclasses import dataclass
from typing import Any, NamedTuple

from .._records import read
from ._runs import FULL, NONE, RATES
from ._ways import FULL_WAY, LORA, WAYS

# The goal, which was set before the first run of the study; see the package's docstring.
FRAMES_MET, GROWTH, SHARE = 2, 0.5, 0.3


class Cell(NamedTuple):
    """The record of each seed at the rate that validation chose, and whether it ends its grid."""

    records: tuple[dict[str, Any], ...]
    is_edge: bool

    def mean(self, name: str) -> float:
        """The mean of a number over the seeds."""
        return statistics.fmean(record[name] for record in self.records)

    def spread(self, name: str) -> tuple[float, float]:
        """The least and the most of a number over the seeds."""
        values = [record[name] for record in self.records]
        return min(values), max(values)


@dataclass(frozen=True)
class Study:
    """All results, by way and number of frames."""

    cells: dict[tuple[str, int], Cell]

    def numbers(self) -> list[int]:
        """The numbers of frames, from few to many."""
        return sorted(FULL.frames)

    def edges(self) -> tuple[int, int]:
        """How many of the chosen rates end their grid, and the number of chosen rates."""
        cells = [cell for (way, _), cell in self.cells.items() if way != NONE]
        return sum(cell.is_edge for cell in cells), len(cells)

    def pairs(self, name: str) -> dict[int, tuple[float, float]]:
        """LoRA's number and full fine-tuning's, over the seeds that both have, by frames."""
        pairs: dict[int, tuple[float, float]] = {}
        for number in self.numbers():
            cells = [self.cells.get((way, number)) for way in (LORA, FULL_WAY)]
            by_seed = [{r["seed"]: r[name] for r in cell.records} for cell in cells if cell]
            if len(by_seed) < 2:
                continue
            seeds = by_seed[0].keys() & by_seed[1].keys()
            means = [statistics.fmean(values[seed] for seed in seeds) for values in by_seed]
            pairs[number] = means[0], means[1]
        return pairs

    def goal(self) -> list[tuple[str, str, bool | None]]:
        """The parts of the goal: text, what was measured, and whether it is met."""
        forces, grown = self.pairs("test force"), self._growth()
        missing = len(self.numbers()) - len(forces)
        lower = sum(lora <= full for lora, full in forces.values())
        is_open = lower < FRAMES_MET <= lower + missing
        first = (
            f"LoRA's force error is at most full fine-tuning's, in {FRAMES_MET} of "
            f"{len(self.numbers())} numbers of frames",
            _text(forces),
            None if is_open else lower >= FRAMES_MET,
        )
        small = [lora <= GROWTH * full for lora, full in grown.values()]
        second = (
            "the force error on salts and semiconductors grows by at most half of its growth under "
            "full fine-tuning, with each number of frames",
            _text(grown),
            False if not all(small) else None if missing else True,
        )
        cells = [
            self.cells[way, n]
            for way in (LORA, FULL_WAY)
            for n in self.numbers()[1:2]
            if (way, n) in self.cells
        ]
        share = cells[0].mean("trained") / cells[1].mean("trained") if len(cells) == 2 else None
        third = (
            f"at most {100 * SHARE:.0f} % of the parameters train",
            "not run" if share is None else f"{100 * share:.0f} %",
            None if share is None else share <= SHARE,
        )
        return [first, second, third]

    def before(self, name: str) -> float | None:
        """A number before the training, which the frames do not change."""
        cells = [cell for (way, _), cell in self.cells.items() if way == NONE]
        return cells[0].mean(name) if cells else None

    def _growth(self) -> dict[int, tuple[float, float]]:
        before = self.before("far force") or 0.0
        pairs = self.pairs("far force")
        return {n: (lora - before, full - before) for n, (lora, full) in pairs.items()}

    def missing(self) -> int:
        """The number of runs at chosen rates that the study lacks."""
        runs = sum(len(cell.records) for (way, _), cell in self.cells.items() if way != NONE)
        return len(WAYS) * len(FULL.frames) * FULL.seeds - runs


def load(path: pathlib.Path) -> Study:
    """Read the results of a file.

    The validation error of the first seed chooses the rate of each way and number of frames.
    """
    grids: dict[tuple[str, int], dict[float, dict[int, Any]]] = defaultdict(
        lambda: defaultdict(dict)
    )
    for record in read(path):
        grids[record["way"], record["frames"]][record["rate"]][record["seed"]] = record
    cells: dict[tuple[str, int], Cell] = {}
    for (way, number), grid in grids.items():
        first = {
            rate: seeds[0]["validation"] for rate, seeds in grid.items() if 0 in seeds and rate
        }
        if way == NONE:
            cells[way, number] = Cell(tuple(grid[0.0].values()), False)
        elif set(RATES) <= first.keys():  # else the run was interrupted within the grid
            best = min(first, key=lambda rate: (first[rate], rate))
            is_edge = best in (min(first), max(first))
            cells[way, number] = Cell(tuple(grid[best].values()), is_edge)
    return Study(cells)


def _text(pairs: dict[int, tuple[float, float]]) -> str:
    texts = [f"{n} frames: {lora:.1f} and {full:.1f}" for n, (lora, full) in pairs.items()]
    return "; ".join(texts) or "not run"
