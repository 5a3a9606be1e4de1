"""How far a quantised model's weights are from the original weights."""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from jno.lora import LoRAWrapper, SelectionError, Table
from jno.lora.extending import Printed, expect_model, is_coded, layers_at, show_path, table

from ._plan import quantizable_layers


@dataclasses.dataclass(frozen=True)
class QuantizationError:
    """One layer, and how far its weight, with its adapter, is from the original.

    - `adapter`: the class of the layer's adapter; `None` without one.
    - `relative`: the Frobenius norm of the difference, relative to the norm of the original weight.
    - `largest`: the largest absolute difference of two entries.
    """

    path: str
    layer: str
    scheme: str
    adapter: str | None
    relative: float
    largest: float


@dataclasses.dataclass(frozen=True, repr=False)
class QuantizationErrors(Printed[QuantizationError]):
    """The errors of each quantised layer of a model, and of all quantised weights together."""

    rows: tuple[QuantizationError, ...]
    relative: float
    largest: float

    def _table(self) -> Table:
        columns = [("path", "left"), ("layer", "left"), ("scheme", "left"), ("adapter", "left")]
        columns += [("relative error", "right"), ("largest error", "right")]
        rows: list[tuple[str, ...]] = []
        for row in self.rows:
            errors = f"{row.relative:.4f}", f"{row.largest:.3g}"
            rows.append((show_path(row.path), row.layer, row.scheme, row.adapter or "", *errors))
        total = f"relative error {self.relative:.4f}, largest {self.largest:.3g}"
        return table(f"{len(self.rows)} quantised layers", columns, rows, f"All together: {total}.")


def quantization_errors(model: PyTree, quantized: PyTree) -> QuantizationErrors:
    """How far the weights of a quantised model, with merged adapters, are from the originals.

    **Arguments:**

    - `model`: the model before it was adapted and quantised.
    - `quantized`: the quantised model, from `quantize` (with or without adapters) or `loftq`.

    **Raises:** `SelectionError` if no layer of `model` is quantised in `quantized`, if the weight
    at a path has another shape there, and if `model` or `quantized` is a `Net` or a set.
    """
    expect_model(model, "quantization_errors")
    expect_model(quantized, "quantization_errors")
    originals = quantizable_layers(model)
    layers = layers_at(quantized, originals)
    rows: list[QuantizationError] = []
    squares: list[tuple[float, float]] = []
    for path, original in originals.items():
        layer: PyTree = layers.get(path)
        base = layer
        while isinstance(base, LoRAWrapper):
            base = base.base
        codes = getattr(base, "weight", None)
        if not is_coded(codes):
            continue
        if codes.shape != original.weight.shape:
            raise SelectionError(
                f"The weight at {show_path(path)!r} has the shape {original.weight.shape} in the "
                f"original model, and {codes.shape} in the quantised one."
            )
        missing, whole, largest = map(float, _differences(original.weight, layer.weight))
        squares.append((missing, whole))
        adapter = type(layer).__name__ if isinstance(layer, LoRAWrapper) else None
        names = type(original).__name__, codes.code, adapter
        rows.append(QuantizationError(path, *names, _ratio(missing, whole), largest))
    if not rows:
        raise SelectionError(
            "No layer of the first model is quantised in the second one. Give the original model "
            "first, and the quantised one second."
        )
    missing, whole = map(sum, zip(*squares, strict=True))
    return QuantizationErrors(tuple(rows), _ratio(missing, whole), max(row.largest for row in rows))


@jax.jit
def _differences(original: Array, weight: PyTree) -> tuple[Array, Array, Array]:
    """The squared norms of the difference and of the original, and the largest difference."""
    original = jnp.asarray(original, jnp.float32)
    difference = jnp.asarray(weight).astype(jnp.float32) - original
    return jnp.sum(difference**2), jnp.sum(original**2), jnp.max(jnp.abs(difference))


def _ratio(missing: float, whole: float) -> float:
    return math.sqrt(missing / whole) if whole > 0 else 0.0
