"""Matrices and settings of all modules. Each module uses a matrix's first rows and columns."""

import numpy as np

from .._errors import MisfitError
from ._type import Factors, Module, Modules


def shared_pair(m: Module, prefix: str) -> Factors:
    """The shared matrices `A` and `B`. **Raises:** `MisfitError` if the file has none."""
    names = [f"base_model.{prefix}_{letter}" for letter in "AB"]
    if not all(name in m.shared for name in names):
        raise MisfitError(
            "the matrices that all layers share are not in the file, and only Torch draws the same "
            "again from their seed: save it in PEFT with save_projection=True"
        )
    return m.shared[names[0]], m.shared[names[1]]


def projections(m: Module, prefix: str, rank: int) -> Factors:
    A, B = shared_pair(m, prefix)
    outputs, inputs = m.layout.matrix
    if A.ndim != 2 or B.ndim != 2 or (len(A), B.shape[1]) != (rank, m.rank):
        raise MisfitError(f"the shared matrices {A.shape} and {B.shape} do not have rank {m.rank}")
    if A.shape[1] < inputs or len(B) < outputs:
        refuse_small(A, B)
    return A[:, :inputs], B[:outputs]


def refuse_small(A: np.ndarray, B: np.ndarray) -> None:
    """**Raises:** `MisfitError`: a layer needs more entries than the shared matrices have."""
    raise MisfitError(f"the shared matrices {A.shape} and {B.shape} are too small for the layer")


def block_settings(modules: Modules, size_name: str, count_name: str) -> dict[str, int]:
    """The size and the number of blocks, one of them 0. **Raises:** `MisfitError`."""
    adapters = [written.adapter for written in modules.values()]
    sizes = {adapter.rank for adapter in adapters}
    counts = {adapter.layout.inputs // adapter.rank for adapter in adapters}
    if len(sizes) == 1:
        return {size_name: sizes.pop(), count_name: 0}
    if len(counts) == 1:
        return {size_name: 0, count_name: counts.pop()}
    raise MisfitError(
        f"PEFT has one size or one number of blocks for all layers, and these have the sizes "
        f"{sorted(sizes)}"
    )
