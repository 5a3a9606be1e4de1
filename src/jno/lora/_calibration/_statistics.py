"""`Statistics`: the results of calibration by path and name, in memory and in a file."""

import json
import os
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._checkpoint import FilePath, read_file, values_of, write_together
from .._errors import CheckpointError
from .._paths import show_array, show_path
from .._showing import Printed, Table, table_by_path

_FACTOR = "/factor"
_KEY = "jno.lora.statistics"  # in the metadata of a file


class Factor(NamedTuple):
    """A covariance `F F^T`, held as `F`."""

    F: Float[Array, "... width size"]


class Statistics(Printed[str], Mapping[str, Mapping[str, Array]]):
    """The statistics of each layer, by path and then by name. Prints as a table.

    Arrays of stacked layers have the axes of the stack in front. Indexing computes a covariance
    from its sketch.

    - `shapes`: the `(out, in)` of each layer's matrix, by path.
    """

    def __init__(
        self,
        means: Mapping[str, Mapping[str, Array | Factor]],
        shapes: Mapping[str, tuple[int, ...]],
    ):
        self.shapes = dict(shapes)
        self._means = {path: dict(arrays) for path, arrays in means.items()}
        self.rows = tuple(self._means)

    def __getitem__(self, path: str) -> dict[str, Array]:
        return {name: _whole(value) for name, value in self._means[path].items()}

    def __iter__(self) -> Iterator[str]:
        return iter(self._means)

    def __len__(self) -> int:
        return len(self._means)

    def save(self, path: FilePath) -> None:
        """Write them into one safetensors file. **Raises:** `CheckpointError` if that fails."""
        import safetensors.numpy

        tensors: dict[str, np.ndarray] = {}
        for layer, arrays in self._means.items():
            for name, value in arrays.items():
                ending = _FACTOR if isinstance(value, Factor) else ""
                what = f"the {name} of {show_path(layer)!r}"
                tensors[f"{layer}:{name}{ending}"] = values_of(_held(value), what)
        metadata = {_KEY: json.dumps(self.shapes)}
        write_together({path: safetensors.numpy.save(tensors, metadata)})

    @classmethod
    def load(cls, path: FilePath) -> "Statistics":
        """Read a file that `save` wrote. **Raises:** `CheckpointError` if it is another file."""
        tensors, metadata = read_file(path)
        try:
            saved = json.loads(metadata[_KEY])
            shapes = {layer: tuple(map(int, shape)) for layer, shape in saved.items()}
        except (KeyError, ValueError, TypeError, AttributeError) as err:
            raise CheckpointError(
                f"{os.fspath(path)!r} does not hold statistics. Give a file that `Statistics.save` "
                "wrote."
            ) from err
        means: dict[str, dict[str, Array | Factor]] = {layer: {} for layer in shapes}
        for tensor, values in tensors.items():
            layer, _, name = tensor.rpartition(":")
            array = jnp.array(values)
            value = Factor(array) if name.endswith(_FACTOR) else array
            means.setdefault(layer, {})[name.removesuffix(_FACTOR)] = value
        return cls(means, shapes)

    def _table(self) -> Table:
        rows = (
            (show_path(path), ", ".join(f"{n} {show_array(_held(v))}" for n, v in arrays.items()))
            for path, arrays in self._means.items()
        )
        return table_by_path("Statistics", [("path", "left"), ("means", "left")], rows)


def _held(value: Array | Factor) -> Array:
    return value.F if isinstance(value, Factor) else value


def _whole(value: Array | Factor) -> Array:
    return value.F @ value.F.mT if isinstance(value, Factor) else value
