"""The adapters of a model, their parameter counts, and the error of merging each adapter."""

import dataclasses
from collections.abc import Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from .._compute.precision import count_reals
from .._contract.calling import refusal_of_template
from .._contract.checks import check_same_structure, expect_model
from .._contract.coded import coded_size
from .._contract.wrapper import LoRAWrapper, merged_layer
from .._errors import WrapperError, errors_as
from .._left_out import LeftOut, count_plain, layers_left_out
from .._merge import wide_layers
from .._paths import show_path, show_place
from .._registry.registry import Registry, default_registry
from .._run import run
from .._sets.members import members_of
from .._shared_arrays import filler
from .._showing.tables import Printed, Table, table
from .._trainability import lora_trainable_filter, may_train
from .._tree import adapted_layers


@dataclasses.dataclass(frozen=True)
class ReportRow:
    """One adapted layer.

    - `rank`, `alpha`: the actual values; `None` if the adapter lacks them. The rank of a sum of
        several adapters is the sum of their ranks, which the table shows one by one: `4+8`.
    - `asked_rank`: the rank that `net.lora` was asked for, if the layer is too small for that rank.
    - `trainable`, `total`: how many parameters of the layer and its adapter train, and how many
        there are. Constants of an adapter (PiSSA's initial factors) are not counted.
    - `merge_error`: the fraction of the update that is lost to rounding when it is merged into the
        layer's dtype. `None` if it was not or cannot be measured, or the update is zero.
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
    asked_rank: int | None = None


@dataclasses.dataclass(frozen=True, repr=False)
class LoraReport(Printed[ReportRow]):
    """The adapted layers of a model, and totals over the whole model.

    Prints as a table that joins rows which differ only in the indices of their paths
    (`layers/[0-11]/query`, with the numbers of a single layer). `rows` is not joined.

    - `trainable`, `total`: the parameters of the whole model with adapters. Real numbers count, so
        a complex number counts as two parameters.
    - `merge_errors`: whether the merge errors were measured.
    - `left_out`: the layers whose matrices have no adapter and do not train.
    - `inactive`: how many named sets of adapters a `Net` keeps outside the model.
    """

    rows: tuple[ReportRow, ...]
    trainable: int
    total: int
    merge_errors: bool = False
    left_out: LeftOut = dataclasses.field(default_factory=LeftOut)
    inactive: int = 0

    @property
    def percentage(self) -> float:
        """`trainable` as a percentage of `total`."""
        return 100 * self.trainable / self.total if self.total else 0.0

    def __repr__(self) -> str:
        return f"LoraReport({self._title()}, {self._caption()})"

    def _title(self) -> str:
        layers = f"{len(self.rows)} adapted {'layer' if len(self.rows) == 1 else 'layers'}"
        inactive = f", inactive sets: {self.inactive} (net.activate)" if self.inactive else ""
        return f"{layers}{inactive}"

    def _caption(self) -> str:
        return f"{self.trainable:,} of {self.total:,} parameters train ({self.percentage:.2f} %)"

    def _table(self) -> Table:
        columns = [(name, "left") for name in ("path", "layer", "adapter", "from")]
        columns += [(name, "right") for name in ("rank", "alpha", "trainable", "total")]
        if self.merge_errors:
            columns.append(("merge error", "right"))
        cells = (
            (
                show_path(row.path),
                row.layer,
                row.wrapper.__name__,
                row.distribution or "",
                _shown_rank(row),
                "" if row.alpha is None else f"{row.alpha:g}",
                f"{row.trainable:,}",
                f"{row.total:,}",
                "-" if row.merge_error is None else f"{row.merge_error:.1e}",
            )[: len(columns)]
            for row in self.rows
        )
        costs = {row.wrapper.__name__: row.wrapper.about.cost for row in self.rows}
        lines = [self._caption(), *(f"{name} {cost}" for name, cost in costs.items() if cost)]
        if any(row.asked_rank is not None for row in self.rows):
            lines.append('Rank "r of q": the call asked for q, and the layer allows no more than r')
        if self.rows and self.left_out.is_worth_a_line:
            lines.append(str(self.left_out))
        return table(self._title(), columns, cells, "\n".join(lines), by_path=True)


def lora_report(model: PyTree, *, merge_error: bool = False) -> LoraReport:
    """The adapters in `model`, with their parameter counts.

    **Arguments:**

    - `model`: any pytree, adapted or not.
    - `merge_error`: whether to measure the rounding error of merging each layer, in two precisions.

    **Returns:** a `LoraReport`. Its trainable parameters are the arrays that
    `lora_trainable_filter` marks. (`Net.summary` counts the parameters that train in the net.)

    **Raises:** `SelectionError` if `model` is a `Net` or a set; `WrapperError` that names the path,
    if the merge error cannot be measured.
    """
    expect_model(model, "lora_report")
    return report_on(model, lora_trainable_filter(model), default_registry(), measure=merge_error)


def _shown_rank(row: ReportRow) -> str:
    if row.rank is None:
        return ""
    if members := members_of(row.wrapper):
        return "+".join("-" if m.rank is None else f"{m.rank}" for m in members)
    return f"{row.rank}" if row.asked_rank is None else f"{row.rank} of {row.asked_rank}"


def report_on(
    model: PyTree,
    trainable: PyTree[bool],
    registry: Registry,
    asked_ranks: Mapping[str, int] = MappingProxyType({}),
    *,
    measure: bool,
) -> LoraReport:
    """`lora_report`, for the leaves that `trainable` marks.

    - `asked_ranks`: the ranks that a call was asked for, by path.
    """
    parameters = may_train(model)
    rows: list[ReportRow] = []
    fill = filler(model)
    for path, adapter, trained, counted in adapted_layers(model, trainable, parameters):
        asked = asked_ranks.get(path, 0)
        row = ReportRow(
            path,
            layer=type(adapter.base).__name__,
            wrapper=type(adapter),
            distribution=registry.distribution(type(adapter)),
            rank=sum(m.rank or 0 for m in members_of(type(adapter))) or adapter.rank,
            alpha=adapter.alpha,
            trainable=count(adapter, trained),
            total=count(adapter, counted) + coded_size(adapter),
            merge_error=_error_of_merging(fill(adapter), path) if measure else None,
            asked_rank=asked if adapter.rank is not None and adapter.rank < asked else None,
        )
        rows.append(row)
    total = count(model, parameters) + coded_size(model)
    left_out = layers_left_out(eqx.filter(model, trainable, inverse=True), count_plain(model))
    return LoraReport(tuple(rows), count(model, trainable), total, measure, left_out)


def _error_of_merging(adapter: LoRAWrapper, path: str) -> float | None:
    """`||merge(W) - W'|| / ||W' - W||`: the fraction of the update that is lost to rounding.

    `W'` is the merged layer in a wider dtype. The norms are over all arrays of the layer.
    """
    what = f"measure what merging {show_place(type(adapter), path)} would cost"
    hint = partial(refusal_of_template, adapter, "Give the model itself.")
    with errors_as(what, WrapperError, hint), jax.enable_x64(True):
        try:
            merged = run(merged_layer, adapter)
            before, exact = wide_layers(adapter)
        except WrapperError:
            return None
        check_same_structure(adapter.base, merged, "`merge()`")
        update = _distance(exact, before)
        return _distance(merged, exact) / update if update else None


def _distance(first: PyTree, second: PyTree) -> float:
    """The Frobenius norm of the difference. Sharded arrays are not gathered."""

    def squared(x: Any, y: Any) -> Any:
        difference = jnp.abs(x.astype(y.dtype) - y)
        return jnp.sum(difference * difference, dtype=jnp.float64)

    arrays = (eqx.filter(tree, eqx.is_inexact_array) for tree in (first, second))
    return float(sum(jax.tree.leaves(jax.tree.map(squared, *arrays)))) ** 0.5


def count(model: PyTree, mask: PyTree[bool]) -> int:
    """The parameters in the selected arrays of `model`."""
    sizes = jax.tree.map(lambda leaf, selected: count_reals(leaf) if selected else 0, model, mask)
    return sum(jax.tree.leaves(sizes))
