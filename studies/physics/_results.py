"""Results from the records: the best rates by validation, errors by groups of values, the goal."""

import pathlib
import statistics
from collections import defaultdict
from dataclasses import dataclass
from typing import Any, NamedTuple

from .._records import read
from . import _darcy as darcy
from ._equations import EQUATIONS, Equation
from ._pinn_runs import LM
from ._tasks import FULL, KEY, chosen

# The goal, which was set before the first run. For networks, by Levenberg-Marquardt, in at least
# `EQUATIONS_MET` equations: an error at untrained values inside of at most `CLOSE` times the lower
# error of the two ways that train everything with `z` as an input, in at most `CHEAP` of the
# seconds and of the temporary memory of full fine-tuning. The source is unchanged bit for bit. For
# the operator: conditional adapters by energy have a lower error at untrained values inside than
# each way by 16 labels.
EQUATIONS_MET, CLOSE, CHEAP = 2, 2.0, 0.5
CONDITIONAL, WITH_INPUT, SCRATCH = "conditional lora 2", "full, an input more", "parametric PINN"


class Cell(NamedTuple):
    """The chosen record of each seed."""

    records: tuple[dict[str, Any], ...]

    def error(self, values: tuple[float, ...]) -> float:
        """The mean error over seeds and values."""
        return statistics.fmean(r["errors"][f"{z:g}"] for r in self.records for z in values)

    def median(self, name: str) -> float:
        """The median of a number over the seeds."""
        return statistics.median(record[name] for record in self.records)


@dataclass(frozen=True)
class Study:
    """All results, by part, problem, way, by, and value (0 for a family)."""

    cells: dict[tuple[str, str, str, str, float], Cell]

    def pinn(self, equation: Equation, way: str, by: str = LM, z: float = 0.0) -> Cell | None:
        """The results of a way on an equation."""
        return self.cells.get(("pinn", equation.name, way, by, z))

    def operator(self, way: str, by: str) -> Cell | None:
        """The results of a way on Darcy flow."""
        return self.cells.get(("darcy", "darcy", way, by, 0.0))

    def edges(self) -> tuple[int, int]:
        """How many of Adam's chosen rates end their grid, and the number of chosen rates."""
        best = [r for cell in self.cells.values() for r in cell.records if r["rate"] > 0]
        return sum(record["edge"] for record in best), len(best)

    def goal(self) -> list[tuple[str, str, bool | None]]:
        """The parts of the goal: text, what was measured, and whether it is met."""
        return [*self._network_goals(), self._operator_goal()]

    def _network_goals(self) -> list[tuple[str, str, bool | None]]:
        ratios: dict[str, dict[str, float]] = defaultdict(dict)
        unchanged: list[bool] = []
        for equation in EQUATIONS:
            ways = [self.pinn(equation, way) for way in (CONDITIONAL, WITH_INPUT, SCRATCH)]
            if None in ways:
                continue
            conditional, full, _ = cells = [way for way in ways if way is not None]
            errors = [cell.error(equation.inside) for cell in cells]
            ratios["error"][equation.name] = errors[0] / min(errors[1:])
            for name in ("seconds", "temporary"):
                ratio = conditional.median(name) / full.median(name)
                ratios[name][equation.name] = ratio
            unchanged += [record["source unchanged"] for record in conditional.records]
        limits = {"error": CLOSE, "seconds": CHEAP, "temporary": CHEAP}
        texts = {
            "error": "error at untrained values inside, over the lower of the two ways with `z` "
            f"as an input: at most {CLOSE:g}",
            "seconds": f"seconds, over full fine-tuning: at most {CHEAP:g}",
            "temporary": f"temporary memory, over full fine-tuning: at most {CHEAP:g}",
        }
        goals: list[tuple[str, str, bool | None]] = []
        for name, text in texts.items():
            count = sum(ratio <= limits[name] for ratio in ratios[name].values())
            missing = len(EQUATIONS) - len(ratios[name])
            is_open = count < EQUATIONS_MET <= count + missing
            measured = ", ".join(f"{problem} {r:.2g}" for problem, r in ratios[name].items())
            goals.append((text, measured, None if is_open else count >= EQUATIONS_MET))
        measured = f"{sum(unchanged)} of {len(unchanged)} runs"
        met = all(unchanged) if unchanged else None
        goals.append(("the source is unchanged bit for bit", measured, met))
        return goals

    def _operator_goal(self) -> tuple[str, str, bool | None]:
        text = (
            "Darcy: conditional adapters by energy have a lower error at untrained values inside "
            "than each way by 16 labels"
        )
        energy = self.operator("conditional", "energy")
        labels = [self.operator(w, "16 labels") for w in ("conditional", WITH_INPUT)]
        if energy is None or None in labels:
            return text, "not run", None
        error = energy.error(darcy.INSIDE)
        by_labels = [cell.error(darcy.INSIDE) for cell in labels if cell is not None]
        measured = f"{error:.3f} against {', '.join(f'{e:.3f}' for e in by_labels)}"
        return text, measured, error < min(by_labels)


def load(path: pathlib.Path) -> Study:
    """Read the results of a file. Validation chooses Adam's rate for each cell and seed."""
    runs: dict[Any, list[dict[str, Any]]] = defaultdict(list)
    for record in read(path):
        runs[tuple(record[name] for name in KEY[:6])].append(record)
    cells: dict[Any, list[dict[str, Any]]] = defaultdict(list)
    for (part, problem, way, by, _, z), records in runs.items():
        has_rates = records[0]["rate"] > 0
        if has_rates and len(records) < len(FULL.rates):
            continue  # the run was interrupted within the grid
        cells[part, problem, way, by, z].append(chosen(records) if has_rates else records[0])
    return Study({name: Cell(tuple(records)) for name, records in cells.items()})
