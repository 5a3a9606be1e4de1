"""Which layers of a model are quantised, why the remaining layers are not, and a table of both."""

import dataclasses
import re
from collections.abc import Iterator

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, PyTree

from jno.lora import LoRAWrapper, SelectionError, Table
from jno.lora.extending import Printed, expect_model, is_coded, path_str, show_path, table
from jno_lora_zoo import LAYER_KINDS, LayerKind

from ._array import QuantizedArray
from ._schemes import Scheme, scheme_named

_KINDS = tuple(kind for kind in LAYER_KINDS if kind.weight_axes is not None)
_EVERY_PATH = re.compile("")
_NORMS = (eqx.nn.WeightNorm, eqx.nn.SpectralNorm)

Keys = tuple[object, ...]


def layers_to_quantize(
    model: PyTree, pattern: re.Pattern[str] = _EVERY_PATH, keys: Keys = ()
) -> Iterator[tuple[Keys, PyTree, str | None]]:
    """Each layer with floating arrays: its keys, the layer, and why it is left alone, if so."""
    while isinstance(model, LoRAWrapper):  # further layers belong to the adapter, and may train
        model, keys = model.base, (*keys, jtu.GetAttrKey("base"))
    if is_coded(model):
        return
    if isinstance(model, eqx.Module):
        is_layer = weight_kind(model) is not None or isinstance(model, _NORMS)
        if is_layer or floating_arrays(model):
            yield keys, model, _reason(keys, model, pattern)
        if is_layer:
            return

    def is_inside(node: object) -> bool:
        return node is not model and isinstance(node, eqx.Module)

    for more, node in jtu.tree_leaves_with_path(model, is_leaf=is_inside):
        if is_inside(node):
            yield from layers_to_quantize(node, pattern, (*keys, *more))


def _reason(keys: Keys, layer: PyTree, pattern: re.Pattern[str]) -> str | None:
    """Why a layer is left alone; `None` if it is quantised."""
    if isinstance(layer, _NORMS):
        return f"the {type(layer).__name__} rewrites the weight inside"
    if weight_kind(layer) is None:
        if any(map(jnp.iscomplexobj, floating_arrays(layer))):
            return "its numbers are complex, and have no codes"
        reasons = filter(None, (kind.why_not(layer) for kind in _KINDS))
        return next(reasons, "it is not a linear, convolution or embedding layer")
    if is_coded(layer.weight):
        return "its weight is quantised already"
    if layer.weight.size == 0:
        return "its weight is empty"
    if not pattern.search(path_str(keys)):
        return "the target does not match its path"
    return None


def weight_kind(layer: PyTree) -> type[LayerKind] | None:
    """The kind of a layer whose weight can be quantised; `None` for other nodes."""
    return next((kind for kind in _KINDS if kind.applies_to(layer)), None)


def stack_ndim(layer: PyTree) -> int:
    """The number of stack axes of a layer whose weight can be quantised."""
    return next(kind.stack_ndim(layer) for kind in _KINDS if kind.applies_to(layer))


def quantizable_layers(model: PyTree) -> dict[str, PyTree]:
    layers = layers_to_quantize(model)
    return {path_str(keys): layer for keys, layer, reason in layers if reason is None}


def floating_arrays(node: PyTree) -> list[Array]:
    return [value for value in vars(node).values() if eqx.is_inexact_array(value)]


def is_template(model: PyTree) -> bool:
    return any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(model))


def as_pattern(target: str | None) -> re.Pattern[str]:
    """A target as a regex, by default for all paths. **Raises:** `SelectionError` if invalid."""
    try:
        return _EVERY_PATH if target is None else re.compile(target)
    except (re.error, TypeError) as err:
        raise SelectionError(f"`target` must be a regex, but is {target!r}: {err}") from err


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
    """The layers of a model that `quantize` changes, and the layers that it leaves alone."""

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
    """The layers that `quantize` would change, and why it would leave the remaining layers alone.

    **Arguments** and **Raises:** as `quantize`, but a plan may be empty.
    """
    expect_model(model, "plan_quantization")
    coding, pattern = scheme_named(scheme, block, double), as_pattern(target)
    return eqx.filter_eval_shape(_plan, model, coding, pattern)


def _plan(model: PyTree, scheme: Scheme, pattern: re.Pattern[str]) -> QuantizationPlan:
    rows: list[QuantizationRow] = []
    for keys, layer, reason in layers_to_quantize(model, pattern):
        path, name = path_str(keys), type(layer).__name__
        if reason is not None:
            size = sum(array.nbytes for array in floating_arrays(layer))
            rows.append(QuantizationRow(path, name, None, reason, size, size))
            continue
        weight = jnp.asarray(layer.weight)
        codes = eqx.filter_eval_shape(QuantizedArray.of, weight, scheme, stack_ndim(layer))
        rows.append(
            QuantizationRow(path, name, scheme.name, None, layer.weight.nbytes, codes.nbytes)
        )
    return QuantizationPlan(tuple(rows))
