"""The axes of the arrays of a model, as `infer` finds them and `declare` takes them."""

import dataclasses
import math
from typing import NamedTuple

from jno.lora.extending import Printed, table
from jno.lora.types import Table

IN_LAYER = "in a layer that has adapters of its own"
NOT_A_PARAMETER = ": a mask or an index, not a parameter"


class ArrayAxes(NamedTuple):
    """The result of `infer` for one array.

    - `path`, `shape`: the array.
    - `axes`: a letter for each of its axes, as `declare` takes them; `None` if there are none.
    - `reason`: why there are none.
    """

    path: str
    shape: tuple[int, ...]
    axes: str | None
    reason: str | None


@dataclasses.dataclass(frozen=True, repr=False)
class InferredAxes(Printed[ArrayAxes]):
    """The axes of all arrays of a model, for `declare`. Prints as a table."""

    rows: tuple[ArrayAxes, ...]

    @property
    def letters(self) -> dict[str, str]:
        """The axes by path, for the arrays that have some."""
        return {row.path: row.axes for row in self.rows if row.axes is not None}

    @property
    def coverage(self) -> float:
        """The fraction of the entries of all parameters with two axes or more that adapters reach.

        Arrays in layers that have adapters of their own count as reached.
        """
        matrices = [row for row in self.rows if len(row.shape) > 1]
        parameters = [m for m in matrices if not (m.reason or "").endswith(NOT_A_PARAMETER)]
        reached = [p for p in parameters if p.axes is not None or p.reason == IN_LAYER]
        entries, total = (sum(math.prod(r.shape) for r in rows) for rows in (reached, parameters))
        return entries / max(1, total)

    def _table(self) -> Table:
        columns = [("array", "left"), ("shape", "left"), ("axes", "left"), ("why not", "left")]
        rows = ((row.path, str(row.shape), row.axes or "", row.reason or "") for row in self.rows)
        caption = f"{self.coverage:.1%} of the entries of matrices are reached."
        return table("Axes of arrays, by their uses", columns, rows, caption)
