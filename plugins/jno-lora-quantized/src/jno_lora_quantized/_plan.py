"""The table of how `quantize` treats each layer."""

import dataclasses
import re

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import PyTree

from jno.lora.extending import Printed, expect_model, path_str, show_path, table
from jno.lora.types import Table

from ._array import QuantizedArray
from ._candidates import as_pattern, floating_arrays, is_template, layers_to_quantize, weight_kind
from ._schemes import Scheme, scheme_named


@dataclasses.dataclass(frozen=True)
class QuantizationRow:
    """One layer with weights.

    - `scheme`: the scheme that its weight gets; `None` if the layer is left alone.
    - `reason`: why it is left alone.
    - `before`, `after`: the bytes of the weight, and of its codes and scales. For a layer that is
        left alone, both count its floating arrays.
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
        """The rows of the layers that stay as they are, with the reasons."""
        return tuple(row for row in self.rows if row.scheme is None)

    def _table(self) -> Table:
        columns = [("path", "left"), ("layer", "left"), ("scheme", "left")]
        columns += [("before", "right"), ("after", "right"), ("left alone", "left")]
        rows: list[tuple[str, ...]] = []
        for row in self.rows:
            cells = row.layer, row.scheme or "", f"{row.before:,}", f"{row.after:,}"
            rows.append((show_path(row.path), *cells, row.reason or ""))
        before = sum(row.before for row in self.rows)
        after = sum(row.after for row in self.rows)
        title = f"{len(self.quantized)} of {len(self.rows)} layers are quantised"
        caption = f"{before:,} bytes become {after:,}."
        return table(title, columns, rows, caption, by_path=True)


def plan_quantization(
    model: PyTree,
    scheme: str = "nf4",
    *,
    target: str | None = None,
    block: int = 64,
    double: bool = True,
) -> QuantizationPlan:
    """The layers that `quantize` would change, and why it would leave the others alone.

    **Arguments** and **Raises:** as `quantize`, but a plan may quantise nothing.
    """
    expect_model(model, "plan_quantization")
    coding, pattern = scheme_named(scheme, block, double), as_pattern(target)
    if is_template(model):
        return eqx.filter_eval_shape(_plan, model, coding, pattern)
    return _plan(model, coding, pattern)


def _plan(model: PyTree, scheme: Scheme, pattern: re.Pattern[str]) -> QuantizationPlan:
    rows: list[QuantizationRow] = []
    for keys, layer, reason in layers_to_quantize(model, pattern):
        path, name = path_str(keys), type(layer).__name__
        if reason is not None:
            size = sum(array.nbytes for array in floating_arrays(layer))
            rows.append(QuantizationRow(path, name, None, reason, size, size))
            continue
        weight, ndim = jnp.asarray(layer.weight), weight_kind(layer).stack_ndim(layer)
        codes = eqx.filter_eval_shape(QuantizedArray.of, weight, scheme, ndim)
        rows.append(
            QuantizationRow(path, name, scheme.name, None, layer.weight.nbytes, codes.nbytes)
        )
    return QuantizationPlan(tuple(rows))
