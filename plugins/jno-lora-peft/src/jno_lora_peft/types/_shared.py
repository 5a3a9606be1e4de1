"""Matrices and settings of all modules. Each module uses a matrix's first rows and columns."""

import numpy as np

from .._errors import MisfitError
from ._methods import Factors
from ._type import Module, Modules


def shared_arrays(m: Module, *names: str) -> list[np.ndarray]:
    """The arrays of all layers. **Raises:** `MisfitError` if the file lacks one."""
    if not all(f"base_model.{name}" in m.shared for name in names):
        raise MisfitError(
            f"{' or '.join(names)}, which layers share, is not in the file: save it in PEFT with "
            "save_projection=True"
        )
    return [m.shared[f"base_model.{name}"] for name in names]


def projections(m: Module, prefix: str, rank: int) -> Factors:
    A, B = shared_arrays(m, f"{prefix}_A", f"{prefix}_B")
    outputs, inputs = m.layout.matrix
    if A.ndim != 2 or B.ndim != 2 or (len(A), B.shape[1]) != (rank, m.rank):
        raise MisfitError(f"the shared matrices {A.shape} and {B.shape} do not have rank {m.rank}")
    if A.shape[1] < inputs or len(B) < outputs:
        raise MisfitError(f"the shared {A.shape} and {B.shape} are too small for the layer")
    return A[:, :inputs], B[:outputs]


def block_settings(modules: Modules, size_name: str, count_name: str) -> dict[str, int]:
    """The size and the number of blocks, one of them 0. **Raises:** `MisfitError`."""
    adapters = [written.adapter for written in modules.values()]
    sizes = {adapter.rank for adapter in adapters}
    counts = {adapter.layout.inputs // adapter.rank for adapter in adapters}
    if len(sizes) == 1:
        return {size_name: sizes.pop(), count_name: 0}
    if len(counts) == 1:
        return {size_name: 0, count_name: counts.pop()}
    raise MisfitError(f"PEFT has blocks of one size or number, and these have {sorted(sizes)}")
