"""What a model's adapters are and what they cost."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import jax.tree_util as jtu
from jaxtyping import PyTree

from .._contract import LoRAWrapper, expect_model, is_wrapper, why
from .._errors import WrapperError
from .._paths import path_str, show_path
from .._registry import Registry, default_registry
from .._showing import Printed, Table, table_by_path
from .._trainability import lora_trainable_filter, may_train
from ._merge_error import error_of_merging


@dataclasses.dataclass(frozen=True)
class ReportRow:
    """One adapted layer.

    - `rank`: the effective rank (a small layer clamps the requested one).
    - `trainable`: how many parameters of the layer and its adapter are trained.
    - `total`: the parameters of the layer and its adapter together. Constants that an adapter
        keeps beside them (PiSSA's initial factors) are not counted.
    - `merge_error`: the part of the adapter's update that a merge into the layer's own dtype would
        round away, relative to the update. `None` if that was not asked for, if the adapter cannot
        be merged, or if it has not changed anything yet.
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
class LoraReport(Printed):
    """The adapted layers of a model, and totals over the whole model.

    Prints as a table, and shows as one in a notebook: rows that differ in nothing but the indices
    of their paths are one row there (`layers/[0-11]/query`), with the numbers of a single layer.
    `rows` has each of them.

    - `trainable`: parameters that train; `total`: parameters of the whole model with adapters.
    - `merge_errors`: whether they were asked for, which gives the table a column.
    """

    rows: tuple[ReportRow, ...]
    trainable: int
    total: int
    merge_errors: bool = False

    @property
    def percentage(self) -> float:
        """`trainable` as a percentage of `total`."""
        return 100 * self.trainable / self.total if self.total else 0.0

    def __iter__(self) -> Iterator[ReportRow]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __repr__(self) -> str:
        return f"LoraReport({self._title()}, {self._caption()})"

    def _title(self) -> str:
        return f"{len(self.rows)} adapted {'layer' if len(self.rows) == 1 else 'layers'}"

    def _caption(self) -> str:
        return f"{self.trainable:,} of {self.total:,} parameters train ({self.percentage:.2f} %)"

    def _table(self) -> Table:
        columns = [("path", "left"), ("layer", "left"), ("adapter", "left"), ("from", "left")]
        numbers = [
            ("rank", "right"),
            ("alpha", "right"),
            ("trainable", "right"),
            ("total", "right"),
        ]
        if self.merge_errors:
            numbers.append(("merge error", "right"))
        return table_by_path(
            self._title(),
            [*columns, *numbers],
            (
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
                )[: len(columns) + len(numbers)]
                for row in self.rows
            ),
            caption=self._caption(),
        )


def lora_report(model: PyTree, *, merge_error: bool = False) -> LoraReport:
    """The adapters in `model`, with their parameter counts.

    **Arguments:**

    - `model`: any pytree, adapted or not.
    - `merge_error`: whether to measure what merging would cost each layer (see `ReportRow`). Each
        layer is merged twice for that.

    **Returns:** a `LoraReport`. Its `trainable` counts the adapters' parameters only, as
    `lora_trainable_filter` marks them (`Net.summary` counts what its own state says).

    **Raises:** `SelectionError` if `model` is a `Net` or a set; `WrapperError` that names the path,
    if what merging costs cannot be measured.
    """
    expect_model(model, "lora_report")
    trainable = lora_trainable_filter(model)
    return report_on(model, trainable, default_registry(), measure=merge_error)


def report_on(
    model: PyTree, trainable: PyTree[bool], registry: Registry, *, measure: bool
) -> LoraReport:
    """`lora_report`, with `trainable` deciding what is counted as trained."""
    counted = may_train(model)
    rows: list[ReportRow] = []
    nodes = jtu.tree_leaves_with_path(model, is_leaf=is_wrapper)
    treedef = jtu.tree_structure(model, is_leaf=is_wrapper)
    masks = (treedef.flatten_up_to(mask) for mask in (trainable, counted))
    for (keys, node), trainable_mask, counted_mask in zip(nodes, *masks, strict=True):
        if is_wrapper(node):
            cls = type(node)
            provider = registry.provider(cls)
            row = ReportRow(
                path=path_str(keys),
                layer=type(node.base).__name__,
                wrapper=cls,
                distribution=None if provider is None else provider.distribution,
                rank=node.rank,
                alpha=node.alpha,
                trainable=count(node, trainable_mask),
                total=count(node, counted_mask),
                merge_error=_measured(node, path_str(keys)) if measure else None,
            )
            rows.append(row)
    total = count(model, counted)
    return LoraReport(tuple(rows), count(model, trainable), total, merge_errors=measure)


def _measured(wrapper: LoRAWrapper, path: str) -> float | None:
    try:
        return error_of_merging(wrapper)
    except Exception as err:
        raise WrapperError(
            f"Could not measure what merging the {type(wrapper).__name__} at {show_path(path)!r} "
            f"would cost: {why(err, wrapper, 'Give the model itself.')}"
        ) from err


def count(model: PyTree, mask: PyTree[bool]) -> int:
    """How many numbers the selected arrays of `model` hold."""

    def size(leaf: Any, selected: bool) -> int:
        return leaf.size if selected else 0

    return sum(jax.tree.leaves(jax.tree.map(size, model, mask)))
