"""Arrays of a tree or of a file, by name."""

import dataclasses
from collections.abc import Callable
from typing import Protocol, runtime_checkable

import jax.tree_util as jtu
import numpy as np
from jaxtyping import PyTree

from jno.lora.extending import path_str
from jno_lora_peft.layouts import Shape


@runtime_checkable
class Array(Protocol):
    """An array of NumPy or JAX, or in a file, which `numpy.asarray` reads."""

    @property
    def shape(self) -> Shape: ...
    @property
    def dtype(self) -> np.dtype: ...
    def __array__(self) -> np.ndarray: ...


@dataclasses.dataclass(frozen=True, eq=False)
class Later:
    """An array in a file, which `numpy.asarray` reads."""

    shape: Shape
    dtype: np.dtype
    read: Callable[[], np.ndarray]

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> np.ndarray:
        value = np.asarray(self.read())
        # HDF5 has no bfloat16, so Keras stores its bytes.
        value = value.view(self.dtype) if value.dtype.kind == "V" else value.astype(self.dtype)
        return value if dtype is None else value.astype(dtype)


def flat(tree: PyTree) -> dict[str, Array]:
    """The leaves of a tree, by their names with slashes."""
    return {path_str(keys): leaf for keys, leaf in jtu.tree_leaves_with_path(tree)}
