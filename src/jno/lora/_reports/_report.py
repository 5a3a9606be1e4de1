"""Reports on the adapters of a model, with their parameter counts."""

import dataclasses

import jax
from jaxtyping import PyTree

from .._contract import LoRAWrapper, expect_model
from .._paths import show_path
from .._registry import Registry, default_registry
from .._showing import Printed, Table, table_by_path
from .._trainability import lora_trainable_filter, may_train
from .._tree import adapted_layers
from ._rounding import error_of_merging


@dataclasses.dataclass(frozen=True)
class ReportRow:
    """One adapted layer.

    - `rank`, `alpha`: as they are (a small layer clamps the requested rank); `None` for adapters
        without one.
    - `trainable`, `total`: the parameters of the layer and its adapter, those that train and all.
        Constants that an adapter keeps beside them (PiSSA's initial factors) are not counted.
    - `merge_error`: the part of the adapter's update that a merge into the layer's own dtype would
        round away. `None` if it was not measured, if the adapter cannot be merged, or if it has not
        changed anything yet.
    """

    path: str
    layer: str
    wrapper: type[LoRAWrapper]
    distribution: str | None
    rank: int | None
    alpha: float | None
    trainable: int
    total: int
    merge_error: float | None = None


@dataclasses.dataclass(frozen=True, repr=False)
class LoraReport(Printed[ReportRow]):
    """The adapted layers of a model, and totals over the whole model.

    Prints and shows as a table. Rows that differ only in the indices of their paths become one row
    there (`layers/[0-11]/query`), with the numbers of a single layer. `rows` holds them all.

    - `trainable`, `total`: the parameters of the whole model with adapters.
    - `merge_errors`: whether the merge errors were measured. They have a column in the table.
    """

    rows: tuple[ReportRow, ...]
    trainable: int
    total: int
    merge_errors: bool = False

    @property
    def percentage(self) -> float:
        """`trainable` as a percentage of `total`."""
        return 100 * self.trainable / self.total if self.total else 0.0

    def __repr__(self) -> str:
        return f"LoraReport({self._title()}, {self._caption()})"

    def _title(self) -> str:
        return f"{len(self.rows)} adapted {'layer' if len(self.rows) == 1 else 'layers'}"

    def _caption(self) -> str:
        return f"{self.trainable:,} of {self.total:,} parameters train ({self.percentage:.2f} %)"

    def _table(self) -> Table:
        numbers = ["rank", "alpha", "trainable", "total"] + ["merge error"] * self.merge_errors
        columns = [("path", "left"), ("layer", "left"), ("adapter", "left"), ("from", "left")]
        columns += [(name, "right") for name in numbers]
        cells = (
            (
                show_path(row.path),
                row.layer,
                row.wrapper.__name__,
                row.distribution or "",
                "" if row.rank is None else f"{row.rank}",
                "" if row.alpha is None else f"{row.alpha:g}",
                f"{row.trainable:,}",
                f"{row.total:,}",
                "-" if row.merge_error is None else f"{row.merge_error:.1e}",
            )[: len(columns)]
            for row in self.rows
        )
        return table_by_path(self._title(), columns, cells, self._caption())


def lora_report(model: PyTree, *, merge_error: bool = False) -> LoraReport:
    """The adapters in `model`, with their parameter counts.

    **Arguments:**

    - `model`: any pytree, adapted or not.
    - `merge_error`: whether to measure what merging would cost each layer (see `ReportRow`), by
        merging it twice.

    **Returns:** a `LoraReport`. Its `trainable` counts the parameters that `lora_trainable_filter`
    marks. (`Net.summary` counts those that train in the net.)

    **Raises:** `SelectionError` if `model` is a `Net` or a set; `WrapperError` that names the path,
    if the merge error cannot be measured.
    """
    expect_model(model, "lora_report")
    trainable = lora_trainable_filter(model)
    return report_on(model, trainable, default_registry(), measure=merge_error)


def report_on(
    model: PyTree, trainable: PyTree[bool], registry: Registry, *, measure: bool
) -> LoraReport:
    """`lora_report`, counting what `trainable` marks as trained."""
    counted = may_train(model)
    rows: list[ReportRow] = []
    for path, node, own_trainable, own_counted in adapted_layers(model, trainable, counted):
        provider = registry.provider(type(node))
        row = ReportRow(
            path=path,
            layer=type(node.base).__name__,
            wrapper=type(node),
            distribution=None if provider is None else provider.distribution,
            rank=node.rank,
            alpha=node.alpha,
            trainable=count(node, own_trainable),
            total=count(node, own_counted),
            merge_error=error_of_merging(node, path) if measure else None,
        )
        rows.append(row)
    return LoraReport(tuple(rows), count(model, trainable), count(model, counted), measure)


def count(model: PyTree, mask: PyTree[bool]) -> int:
    """The number of numbers in the selected arrays of `model`."""
    sizes = jax.tree.map(lambda leaf, selected: leaf.size if selected else 0, model, mask)
    return sum(jax.tree.leaves(sizes))
