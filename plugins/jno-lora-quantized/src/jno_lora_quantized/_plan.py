"""The table of how `quantize` treats each layer."""

import dataclasses

from jno.lora.extending import Printed, show_path, table
from jno.lora.types import Table


@dataclasses.dataclass(frozen=True)
class QuantizationRow:
    """One layer with weights.

    - `scheme`: the scheme that its weight gets; `None` if the layer is left alone.
    - `reason`: why it is left alone.
    - `before`, `after`: the bytes of the weight, and of its codes and scales. Of a layer that is
        left alone, those of its own floating arrays.
    """

    path: str
    layer: str
    scheme: str | None
    reason: str | None
    before: int
    after: int


@dataclasses.dataclass(frozen=True, repr=False)
class QuantizationPlan(Printed[QuantizationRow]):
    """The layers of a model that `quantize` changes, and those that it leaves alone."""

    rows: tuple[QuantizationRow, ...]

    @property
    def quantized(self) -> tuple[QuantizationRow, ...]:
        """The rows of the layers whose weight is quantised."""
        return tuple(row for row in self.rows if row.scheme is not None)

    @property
    def left_alone(self) -> tuple[QuantizationRow, ...]:
        """The rows of the other layers, with the reasons."""
        return tuple(row for row in self.rows if row.scheme is None)

    def _table(self) -> Table:
        columns = [("path", "left"), ("layer", "left"), ("scheme", "left")]
        columns += [("before", "right"), ("after", "right"), ("left alone", "left")]
        rows = (
            (
                show_path(row.path),
                row.layer,
                row.scheme or "",
                f"{row.before:,}",
                f"{row.after:,}",
                row.reason or "",
            )
            for row in self.rows
        )
        before, after = (sum(getattr(row, it) for row in self.rows) for it in ("before", "after"))
        return table(
            f"{len(self.quantized)} of {len(self.rows)} layers are quantised",
            columns,
            rows,
            f"{before:,} bytes become {after:,}.",
        )
