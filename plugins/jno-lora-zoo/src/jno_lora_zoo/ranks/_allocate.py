"""Distribute a total rank over layers, by the energy of their directions."""

import dataclasses
import re
from collections.abc import Callable, Mapping

import numpy as np
from jax.typing import ArrayLike

from jno.lora import SelectionError, Spec, Table
from jno.lora.extending import Printed, show_path, table


@dataclasses.dataclass(frozen=True)
class AllocationRow:
    """The rank of one layer, and `part`, the fraction of its energy in that many directions."""

    path: str
    rank: int
    part: float


@dataclasses.dataclass(frozen=True)
class Allocation(Printed[AllocationRow]):
    """The rank of each layer. Prints as a table."""

    rows: tuple[AllocationRow, ...]

    @property
    def specs(self) -> list[Spec]:
        """A spec for each layer with a rank, for `specs=`. Wrapper and alpha come from the call."""
        return [
            Spec(target=f"^{re.escape(row.path)}$", rank=row.rank) for row in self.rows if row.rank
        ]

    def _table(self) -> Table:
        columns = [("path", "left"), ("rank", "right"), ("energy kept", "right")]
        rows = ((show_path(row.path), str(row.rank), f"{row.part:.1%}") for row in self.rows)
        total = sum(row.rank for row in self.rows)
        return table("Ranks", columns, rows, f"{total:,} in all", by_path=True)


def allocate(
    statistics: Mapping[str, Mapping[str, ArrayLike]],
    budget: int,
    *,
    method: str = "variance",
    least: int = 1,
    most: int | None = None,
) -> Allocation:
    """Distribute a total rank over layers: each further rank goes where it adds the most energy.

    **Arguments:**

    - `statistics`: what `collect_statistics` returned.
    - `budget`: the sum of the ranks of all layers. Each layer of a stack counts.
    - `method`: the energy of a direction. `"variance"`: the eigenvalues of the covariance of a
        layer's inputs, as fractions of their sum, as in EVA (centred if `input_mean` was
        collected). `"gradient"`: the squared singular values of the gradient.
    - `least`, `most`: the bounds of each layer's rank. With `least=0` a layer may get no adapter.

    **Returns:** an `Allocation`, whose `specs` are for `apply_lora` and `net.lora`.

    **Raises:** `SelectionError` if a layer lacks the statistic, or the budget is too small for
    `least`.
    """
    _check_arguments(statistics, budget, method, least, most)
    energies = {path: _energies(path, arrays, method) for path, arrays in statistics.items()}
    layers = {path: max(energy.shape[0], 1) for path, energy in energies.items()}
    # A matrix has at most as many directions as its smaller side.
    sides = {path: min(shape) for path, shape in getattr(statistics, "shapes", {}).items()}
    mean = {path: energy.mean(axis=0)[: sides.get(path)] for path, energy in energies.items()}
    ranks = {path: min(least, energy.size) for path, energy in mean.items()}
    remaining = budget - sum(ranks[path] * layers[path] for path in ranks)
    if remaining < 0:
        raise SelectionError(
            f"`budget` is {budget}, but {sum(layers.values())} layers of rank {least} need "
            f"{budget - remaining}. Raise it, or lower `least`."
        )
    # Values decrease within a layer, so a global sort keeps each layer's order.
    order = sorted(
        (-value, path) for path, energy in mean.items() for value in energy[ranks[path] : most]
    )
    for _, path in order:
        if layers[path] <= remaining:
            ranks[path] += 1
            remaining -= layers[path]
    parts = {path: mean[path][:n].sum() / (mean[path].sum() or 1.0) for path, n in ranks.items()}
    rows = (AllocationRow(path, rank, float(parts[path])) for path, rank in ranks.items())
    return Allocation(tuple(rows))


def _check_arguments(
    statistics: Mapping[str, object], budget: int, method: str, least: int, most: int | None
) -> None:
    if not (budget >= 1 and least >= 0 and (most is None or most >= max(least, 1))):
        raise SelectionError(
            "`budget` must be at least 1, `least` at least 0, and `most` at least 1 and `least`, "
            f"but they are {budget!r}, {least!r} and {most!r}."
        )
    if not statistics:
        raise SelectionError("`statistics` are empty: there are no layers to give a rank.")
    if method not in _SPECTRA:
        raise SelectionError(f"`method` must be 'variance' or 'gradient', but is {method!r}.")


def _energies(path: str, arrays: Mapping[str, ArrayLike], method: str) -> np.ndarray:
    """The energy of each direction, largest first, for each layer of a stack."""
    name, spectrum = _SPECTRA[method]
    if name not in arrays:
        raise SelectionError(
            f"The statistics of {show_path(path)!r} have no {name!r}, only {', '.join(arrays)}. "
            "Calibrate for adapters that need it, or choose another `method`."
        )
    energies = spectrum(arrays)
    return energies.reshape(-1, energies.shape[-1])


def _variance(arrays: Mapping[str, ArrayLike]) -> np.ndarray:
    C = np.asarray(arrays["input_covariance"], np.float64)
    if "input_mean" in arrays:
        mean = np.asarray(arrays["input_mean"], np.float64)
        C = C - mean[..., :, None] * mean[..., None, :]
    values = np.maximum(np.linalg.eigvalsh(C)[..., ::-1], 0)
    total = values.sum(axis=-1, keepdims=True)
    return values / np.where(total > 0, total, 1)


def _gradient(arrays: Mapping[str, ArrayLike]) -> np.ndarray:
    return np.square(np.linalg.svd(np.asarray(arrays["gradient"], np.float64), compute_uv=False))


# The statistic that each method reads, and the energies that it gives.
_SPECTRA: dict[str, tuple[str, Callable[[Mapping[str, ArrayLike]], np.ndarray]]] = {
    "variance": ("input_covariance", _variance),
    "gradient": ("gradient", _gradient),
}
