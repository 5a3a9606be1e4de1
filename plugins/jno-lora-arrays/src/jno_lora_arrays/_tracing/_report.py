"""The table of uses of weights."""

import collections
import dataclasses
from typing import NamedTuple

from jno.lora.extending import Printed, table
from jno.lora.types import Table


class Use(NamedTuple):
    """One use of a weight that a function reads from an adapted layer.

    - `adapter`, `shape`: the adapter's class, and the shape of the weight where it is used.
    - `operation`: the operation of JAX, such as `dot_general`.
    - `reason`: why the use needs the merged weight; `None` if the adapter computes it.
    """

    adapter: str
    shape: tuple[int, ...]
    operation: str
    reason: str | None


@dataclasses.dataclass(frozen=True, repr=False)
class UseReport(Printed[Use]):
    """The uses of weights in a function. Prints as a table, with one row for equal uses."""

    rows: tuple[Use, ...]

    def _table(self) -> Table:
        counted = collections.Counter(self.rows)
        columns = [("adapter", "left"), ("weight", "left"), ("operation", "left")]
        columns += [("uses", "right"), ("computed", "left")]
        rows = (
            (adapter, str(shape), operation, str(count), reason or "by the adapter")
            for (adapter, shape, operation, reason), count in counted.items()
        )
        merged = sum(use.reason is not None for use in self.rows)
        caption = f"{merged} of {len(self.rows)} uses need the merged weight."
        return table("Weights that are read from adapted layers", columns, rows, caption)
