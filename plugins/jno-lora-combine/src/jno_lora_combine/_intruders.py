"""Intruder dimensions: large singular directions of an adapted weight that its layer lacked."""

import dataclasses
import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, PyTree

from jno.lora import (
    AdapterSet,
    LoRAWrapper,
    MatrixAdapter,
    SelectionError,
    Table,
    extract_adapters,
    resolve,
    swap_adapters,
)
from jno.lora.extending import (
    Printed,
    adapted_layers,
    check_rank,
    expect_model,
    over_stack,
    show_path,
    table,
)
from jno_lora_zoo import Factors, known_factors

from ._checks import check_fraction
from ._factors import side_by_side, within_full_rank
from ._matrices import MatrixRow, before_and_after, matrices_of
from ._to_lora import to_lora


@dataclasses.dataclass(frozen=True)
class IntruderRow(MatrixRow):
    """The intruder dimensions of one matrix.

    - `path`: of the layer; `array`: the name of the matrix in a layer with several; `part`: the
      slice of a stacked layer. `label` joins the three.
    - `shape`: of the matrix, `(out, in)`.
    - `similarities`: for each of the largest singular directions of `W'`, largest first, the cosine
      of its left vector with the nearest left singular vector of `W`.
    - `intruders`: the positions of the intruders among these directions.
    - `energy`: their fraction of `||W'||_F^2`.
    """

    similarities: tuple[float, ...] = dataclasses.field(repr=False)
    intruders: tuple[int, ...]
    energy: float


@dataclasses.dataclass(frozen=True, repr=False)
class IntruderReport(Printed[IntruderRow]):
    """The intruder dimensions of a model, one row per matrix. Prints and shows as a table.

    - `left_out`: the paths of adapters that cannot be merged, or whose matrix is not known.
    """

    rows: tuple[IntruderRow, ...]
    left_out: tuple[str, ...] = ()

    def __repr__(self) -> str:
        count = sum(len(row.intruders) for row in self.rows)
        return f"IntruderReport({count} intruders in {len(self.rows)} matrices)"

    def _table(self) -> Table:
        headings = ("shape", "intruders", "of the largest", "least similarity", "energy")
        columns = [("matrix", "left"), ("adapter", "left"), *((name, "right") for name in headings)]
        cells = (
            (
                *row._first_cells(),
                str(len(row.intruders)),
                str(len(row.similarities)),
                f"{min(row.similarities):.2f}",
                f"{100 * row.energy:.1f}%",
            )
            for row in self.rows
        )
        missing = ", ".join(map(show_path, self.left_out))
        caption = f"Not measured: {missing}" if missing else ""
        return table(f"Intruders in {len(self.rows)} matrices", columns, cells, caption)


def report_intruders(model: PyTree, *, top: int = 10, threshold: float = 0.5) -> IntruderReport:
    """Find the intruder dimensions that adapters added to their layers.

    An intruder is one of the `top` largest singular directions of the adapted weight `W'` whose
    left vector has a cosine below `threshold`, in magnitude, with every left singular vector of the
    weight `W` before adapting. The paper finds them in weights trained by LoRA, and shows that the
    model forgets less when they are scaled down (`reduce_intruders`). The weights are merged in at
    least float32, and decomposed on the host in float64.

    A direction that mixes many directions of `W` counts as an intruder, too: a random direction in
    `n` dimensions has a cosine of about `sqrt(2 log(n) / n)` with the nearest. The vectors of equal
    singular values are not unique. Directions of `W` with singular value zero do not count.

    **Arguments:**

    - `model`: an adapted model.
    - `top`: how many directions to look at.
    - `threshold`: a number between 0 and 1.

    **Returns:** an `IntruderReport`, with a row per matrix, or per slice of a stacked layer.

    **Raises:** `SelectionError` if an argument is invalid, or `model` has no adapters.

    Paper: Shuttleworth et al., "LoRA vs Full Fine-tuning: An Illusion of Equivalence",
    arXiv:2410.21228.
    """
    expect_model(model, "report_intruders")
    check_rank(top, "`top`")
    check_fraction("threshold", threshold)
    rows: list[IntruderRow] = []
    left_out: list[str] = []
    for path, adapter in adapted_layers(resolve(model)):
        pairs = _pairs_of(path, adapter)
        if not pairs:
            left_out.append(path)
        for array, (before, after) in pairs.items():
            found = _find_intruders(before, after, top, threshold)
            energies = found.energies
            for part in np.ndindex(before.shape[:-2]):
                place = path, array, part, type(adapter), before.shape[-2:]
                similarities = tuple(found.similarities[part].tolist())
                intruders = tuple(np.flatnonzero(found.intrudes[part]).tolist())
                rows.append(IntruderRow(*place, similarities, intruders, float(energies[part])))
    if not rows and not left_out:
        raise SelectionError("The model has no adapters. Give the adapted model, before merging.")
    return IntruderReport(tuple(rows), tuple(left_out))


def reduce_intruders(
    adapters: AdapterSet,
    model: PyTree,
    *,
    factor: float = 0.75,
    top: int = 10,
    threshold: float = 0.5,
) -> AdapterSet:
    """A set of adapters with intruder dimensions scaled down, to forget less.

        reduced = reduce_intruders(extract_adapters(net.module), net.module)
        net = Net(swap_adapters(model, reduced))

    The adapted weight `W'` becomes `W' + (factor - 1) sum_j s_j u_j v_j^T`, over its intruders'
    singular triplets (see `report_intruders`). This is exact, so the rank of an adapter grows by
    the number of its intruders, as far as the matrix allows.
    `combine([reduced], [1], "svd", rank=4)` cuts the rank, as PEFT does. This also scales down what
    the intruders learned, so try several factors and measure.

    **Arguments:**

    - `adapters`: a set. Adapters other than plain LoRA become LoRA, as with `to_lora`.
    - `model`: the model that the set is for, adapted or not.
    - `factor`: the factor of the intruders' singular values; 1 changes nothing, 0 removes the
      intruders.
    - `top`, `threshold`: as for `report_intruders`.

    **Returns:** a set of plain LoRA.

    **Raises:** `SelectionError` if an argument is invalid, or the set does not fit the model;
    `WrapperError` if an update is not a low-rank product, or its matrix cannot be decomposed.

    Paper: as `report_intruders`. The paper subtracts one intruder at a time; here, as in PEFT, all
    intruders of a matrix are scaled.
    """
    expect_model(model, "reduce_intruders")
    check_rank(top, "`top`")
    check_fraction("threshold", threshold)
    is_number = isinstance(factor, int | float) and not isinstance(factor, bool)
    if not (is_number and math.isfinite(factor) and factor >= 0):
        raise SelectionError(f"`factor` must be a number of 0 or more, but is {factor!r}.")
    put = swap_adapters(model, adapters)
    lora, _ = to_lora({path: a for path, a in adapted_layers(put) if path in adapters.adapters})
    loose = dict(extract_adapters(lora).adapters)
    for path, adapter in lora.items():
        pairs, update = _pairs_of(path, adapter), known_factors(adapter)
        if update is None or "" not in pairs:
            raise SelectionError(
                f"{show_path(path)}: a {type(adapter).__name__} has no single matrix whose "
                "intruders could be scaled. Leave it out of the set."
            )
        found = _find_intruders(*pairs[""], top, threshold)
        if found.intrudes.any():
            change = found.as_update(factor - 1, update.A.dtype)
            total = within_full_rank(side_by_side([update, change]))
            state, rank, alpha = total.as_adapter(loose[path].wrapper)
            loose[path] = dataclasses.replace(loose[path], state=state, rank=rank, alpha=alpha)
    return AdapterSet(loose)


class _Intruders(NamedTuple):
    """The intruders of a matrix, or of each slice of a stack.

    - `U`, `S`, `Vt`: the singular triplets of `W'`, largest first.
    - `similarities`, `intrudes`: for each of the largest directions, the cosine with the nearest
        direction of `W`, and whether it is an intruder.
    """

    U: np.ndarray
    S: np.ndarray
    Vt: np.ndarray
    similarities: np.ndarray
    intrudes: np.ndarray

    @property
    def energies(self) -> np.ndarray:
        """The intruders' fraction of `||W'||_F^2`."""
        squares = self.S**2
        total = np.sum(squares, axis=-1)
        of_intruders = np.sum(squares[..., : self.intrudes.shape[-1]] * self.intrudes, axis=-1)
        return np.asarray(of_intruders / np.where(total > 0, total, 1))

    def as_update(self, factor: float, dtype: DTypeLike) -> Factors:
        """`factor` times the intruders' part of `W'`."""
        most = np.max(np.sum(self.intrudes, axis=-1))
        # Slices with fewer intruders are padded with directions of size 0.
        order = np.argsort(~self.intrudes, axis=-1, kind="stable")[..., :most]
        sizes = np.take_along_axis(self.S, order, -1) * np.take_along_axis(self.intrudes, order, -1)
        U = np.take_along_axis(self.U, order[..., None, :], -1)
        A = np.take_along_axis(self.Vt, order[..., None], -2)
        B = factor * U * sizes[..., None, :]
        return Factors(jnp.asarray(A, dtype), jnp.asarray(B, dtype))


def _find_intruders(
    before: np.ndarray, after: np.ndarray, top: int, threshold: float
) -> _Intruders:
    U, S, Vt = np.linalg.svd(after, full_matrices=False)
    former, sizes, _ = np.linalg.svd(before, full_matrices=False)
    # Complex matrices have a free phase, as real matrices have a free sign.
    cosines = np.abs(np.swapaxes(former.conj(), -1, -2) @ U[..., :top])
    similarities = np.max(cosines * _is_nonzero(sizes, before.shape)[..., None], axis=-2)
    intrudes = (similarities < threshold) & _is_nonzero(S, after.shape)[..., :top]
    return _Intruders(U, S, Vt, similarities, intrudes)


def _is_nonzero(sizes: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Which singular values exceed the weights' rounding, so that their vectors are defined."""
    return sizes > max(shape[-2:]) * np.finfo(np.float32).eps * sizes[..., :1]


def _pairs_of(path: str, adapter: LoRAWrapper) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """`W` and `W'`, `(*stack, out, in)`, by name. Empty if they are not known."""
    read = functools.partial(matrices_of, MatrixAdapter.of(type(adapter)))
    over_layers = over_stack(read, type(adapter).stack_ndim(adapter.base))
    both = before_and_after(path, adapter, lambda layer: jax.tree.map(_on_host, over_layers(layer)))
    return {} if both is None else {name: (W, both[1][name]) for name, W in both[0].items()}


def _on_host(matrix: Array) -> np.ndarray:
    return np.asarray(matrix, np.complex128 if jnp.iscomplexobj(matrix) else np.float64)
