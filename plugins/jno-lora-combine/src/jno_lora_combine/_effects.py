"""The effects of adapters on the matrices of a model: their sizes and effective ranks."""

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from os import PathLike
from typing import TYPE_CHECKING

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, PyTree

from jno.lora import LoRAWrapper, MatrixAdapter, SelectionError, Table
from jno.lora.extending import (
    Printed,
    adapted_layers,
    expect_model,
    filler,
    over_stack,
    path_str,
    show_path,
    table,
)

from ._matrices import MatrixRow, before_and_after, matrices_of
from ._pictures import new_picture

# With more matrices, only some have a label.
_MOST_LABELS = 60

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclasses.dataclass(frozen=True)
class AdapterEffect(MatrixRow):
    """The change `dW` of one matrix: the merged weight minus the weight before adapting.

    - `path`: of the layer; `array`: the name of the array (`"weight"`); `part`: the slice of a
        stacked layer. `label` joins the three. If several arrays store one family of matrices, such
        as real and imaginary parts, `array` is the name of the family.
    - `shape`: of the matrix. Its rows are the outputs that the adapter declares, or else the first
        axis. All modes of spectral weights lie side by side: `(out, in * modes)`. A vector is one
        column.
    - `relative_norm`: `||dW||_F / ||W||_F`.
    - `effective_rank`: the number of directions in which `dW` acts: `exp(-sum(p log p))` with
        `p = s / sum(s)` for the singular values `s`. It is `r` for `r` directions of equal weight,
        lower if one direction dominates, and 0 without a change. (Roy and Vetterli, "The effective
        rank: A measure of effective dimensionality", EUSIPCO 2007.)
    - `singular_values`: of `dW`, largest first. Values below the rounding of `W` in float32
        (float64, if `W` is) count as 0, here and in the norms.
    """

    relative_norm: float
    effective_rank: float
    singular_values: tuple[float, ...] = dataclasses.field(repr=False)


@dataclasses.dataclass(frozen=True, repr=False)
class AdapterEffects(Printed[AdapterEffect]):
    """The effects of a model's adapters, one row per matrix. Prints and shows as a table.

    - `left_out`: the paths of adapters without a `dW`, because they cannot be merged.
    """

    rows: tuple[AdapterEffect, ...]
    left_out: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"AdapterEffects({len(self.rows)} matrices, {len(self.left_out)} left out)"

    def _table(self) -> Table:
        numbers = ("shape", "‖ΔW‖ / ‖W‖", "effective rank", "spectral norm")
        columns = [("matrix", "left"), ("adapter", "left"), *((name, "right") for name in numbers)]
        cells = (
            (
                *row._first_cells(),
                f"{row.relative_norm:.2e}",
                f"{row.effective_rank:.1f}",
                f"{row.singular_values[0]:.2e}",
            )
            for row in self.rows
        )
        missing = ", ".join(map(show_path, self.left_out))
        caption = f"Cannot be merged: {missing}" if missing else ""
        return table(f"Effects of adapters on {len(self.rows)} matrices", columns, cells, caption)


def adapter_effects(model: PyTree) -> AdapterEffects:
    """Measure how much each adapter changed its layer, and in how many directions.

    Every layer is merged and unwrapped in float64 (float32 for half precision), and the difference
    of each array is decomposed on the host. For a large model, give a part (`model.blocks[0]`).

    **Arguments:** `model`, any pytree, adapted or not.

    **Returns:** `AdapterEffects`, with one row per matrix that an adapter changed (per slice of a
    stacked layer). A layer that has not changed yet has a row of zeros for each matrix of more than
    one column.

    **Raises:** `WrapperError` that names the path, if an adapter that can be merged fails to merge;
    `SelectionError` if `model` is a `Net` or a set.
    """
    expect_model(model, "adapter_effects")
    rows: list[AdapterEffect] = []
    left_out: list[str] = []
    fill = filler(model)
    for path, adapter in adapted_layers(model):
        read = functools.partial(_matrices_by_name, adapter)
        matrices = before_and_after(path, fill(adapter), read)
        if matrices is None:
            left_out.append(path)
        else:
            rows += _effects_of(path, adapter, *matrices)
    return AdapterEffects(tuple(rows), tuple(left_out))


def plot_adapters(model: PyTree, path: str | PathLike[str] | None = None) -> "Figure":
    """Draw `adapter_effects`: size, effective rank and singular values of each update.

    **Arguments:**

    - `model`: any pytree with adapters, or the `AdapterEffects` of one.
    - `path`: where to save the picture, in the format of the ending. `None` saves nothing.

    **Returns:** a `matplotlib.figure.Figure`, which shows itself in a notebook.

    **Raises:** `SelectionError` if there is nothing to draw, or `path` does not end in a picture
    format; `MissingLibraryError` without matplotlib (the extra `plot`); `OSError` if the file
    cannot be written; the errors of `adapter_effects`.
    """
    expect_model(model, "plot_adapters")
    figure = new_picture(11, 4, path)  # checks the ending before long work
    effects = model if isinstance(model, AdapterEffects) else adapter_effects(model)
    if not effects.rows:
        left_out = ", ".join(map(show_path, effects.left_out)) or "none"
        raise SelectionError(
            "The model carries no adapter that could be drawn. Adapt it first: net.lora(...). "
            f"Adapters that cannot be merged: {left_out}."
        )
    figure.set_figheight(min(2.2 + 0.17 * len(effects.rows), 14))
    _draw(figure, effects.rows)
    return figure.saved(path)


def _draw(figure: "Figure", rows: Sequence[AdapterEffect]) -> None:
    """Size, effective rank and singular values of each update, the first layer on top."""
    from matplotlib import colormaps
    from matplotlib.ticker import MaxNLocator

    sizes, ranks, spectra = figure.subplots(1, 3, width_ratios=(2, 2, 3))
    # Without the ends of the map, which are hard to see on white.
    colors = colormaps["turbo"](np.linspace(0.08, 0.92, len(rows)))
    heights = range(len(rows))
    for axes, name in ((sizes, "relative_norm"), (ranks, "effective_rank")):
        lengths = np.asarray([getattr(row, name) for row in rows])
        # A change relative to a weight of 0 is infinite, and gets no bar.
        axes.barh(heights, np.where(np.isfinite(lengths), lengths, np.nan), color=colors)
        axes.set_ylim(len(rows) - 0.4, -0.6)
    step = math.ceil(len(rows) / _MOST_LABELS)
    sizes.set_yticks(heights[::step], [row.label for row in rows[::step]], fontsize="x-small")
    ranks.set_yticks([])
    for row, color in zip(rows, colors, strict=True):
        values = np.asarray(row.singular_values)
        values = values[(values > 0) & np.isfinite(values)]
        spectra.plot(range(1, len(values) + 1), values, ".-", color=color, linewidth=1)
    if any(any(value > 0 for value in row.singular_values) for row in rows):
        spectra.set_yscale("log")
    spectra.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    sizes.set_xlabel("‖ΔW‖ / ‖W‖")
    ranks.set_xlabel("effective rank of ΔW")
    spectra.set_xlabel("number of the singular value")
    spectra.set_ylabel("singular values of ΔW")
    for axes in (sizes, ranks, spectra):
        axes.spines[["top", "right"]].set_visible(False)


def _matrices_by_name(adapter: LoRAWrapper, layer: eqx.Module) -> dict[str, np.ndarray]:
    """The matrices of `layer`, `(*stack, rows, columns)`, by the names of families or arrays."""
    ndim = type(adapter).stack_ndim(adapter.base)
    read = functools.partial(matrices_of, MatrixAdapter.of(type(adapter)))
    declared: dict[str, Array] = over_stack(read, ndim)(layer)
    single = declared.pop("", None)
    if declared:
        rows_first = {name: np.moveaxis(np.asarray(W), -2, ndim) for name, W in declared.items()}
        return {name: _flattened(W, ndim) for name, W in rows_first.items()}
    matrices: dict[str, np.ndarray] = {}
    for keys, array in jtu.tree_leaves_with_path(layer):
        if eqx.is_inexact_array(array) and array.size:
            # A matrix of the same size is this array with its axes in another order.
            if single is not None and array.ndim > ndim + 1 and single.size == array.size:
                array = single
            matrices[path_str(keys)] = _flattened(array, ndim)
    return matrices


def _flattened(array: ArrayLike, ndim: int) -> np.ndarray:
    """`array` with one axis of rows and one of columns behind the axes of a stack."""
    array = np.asarray(array)
    if array.ndim == ndim:
        return array[..., None, None]
    return array.reshape(*array.shape[: ndim + 1], -1)


def _effects_of(
    path: str,
    adapter: LoRAWrapper,
    before: Mapping[str, np.ndarray],
    after: Mapping[str, np.ndarray],
) -> list[AdapterEffect]:
    dtypes = [x.dtype for x in jax.tree.leaves(adapter.base) if eqx.is_inexact_array(x)]
    eps = min(float(jnp.finfo(dtype).eps) for dtype in (*dtypes, jnp.float32))
    effects: list[AdapterEffect] = []
    for name, old in before.items():
        for part in np.ndindex(old.shape[:-2]):
            W, dW = old[part], after[name][part] - old[part]
            norm = float(np.linalg.norm(W))
            values = _singular_values(dW, eps * norm)
            change = float(np.linalg.norm(values))
            relative = change / norm if norm else math.inf if change else 0.0
            sizes = relative, _effective_rank(values), tuple(values.tolist())
            effects.append(AdapterEffect(path, name, part, type(adapter), W.shape, *sizes))
    changed = {effect.array for effect in effects if effect.relative_norm != 0}
    if changed:
        return [effect for effect in effects if effect.array in changed]
    return [effect for effect in effects if effect.shape[1] > 1]


def _singular_values(dW: np.ndarray, rounding: float) -> np.ndarray:
    if not np.isfinite(dW).all():
        return np.full(min(dW.shape), np.nan)
    values = np.linalg.svd(dW, compute_uv=False)
    return np.where(values > rounding, values, 0)


def _effective_rank(values: np.ndarray) -> float:
    if not values.any():
        return 0.0
    values = values[values != 0].astype(np.float64)
    p = values / values.sum()
    return float(np.exp(-np.sum(p * np.log(p))))
