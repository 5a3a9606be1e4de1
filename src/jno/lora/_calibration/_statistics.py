"""`Statistics`: what calibration collected, by path and name; in memory and in a file."""

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
    """`F` in the place of a covariance, which is `F F^T`."""

    F: Float[Array, "... width size"]


class Statistics(Printed[str], Mapping[str, Mapping[str, Array]]):
    """The statistics of each layer, by path and then by name. Prints as a table.

    Stacked layers have the axes of their stack in front of each array. A covariance of which a
    sketch is kept is put together when it is asked for.

    - `shapes`: the `(out, in)` of each layer's matrix, by path.
    """

    def __init__(
        self,
        found: Mapping[str, Mapping[str, Array | Factor]],
        shapes: Mapping[str, tuple[int, ...]],
    ):
        self.shapes = dict(shapes)
        self._found = {path: dict(arrays) for path, arrays in found.items()}
        self.rows = tuple(self._found)

    def __getitem__(self, path: str) -> dict[str, Array]:
        return {name: _whole(value) for name, value in self._found[path].items()}

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)

    def save(self, path: FilePath) -> None:
        """Write them into one safetensors file. **Raises:** `CheckpointError` if that fails."""
        import safetensors.numpy

        tensors: dict[str, np.ndarray] = {}
        for layer, arrays in self._found.items():
            for name, value in arrays.items():
                array, end = (value.F, _FACTOR) if isinstance(value, Factor) else (value, "")
                what = f"the {name} of {show_path(layer)!r}"
                tensors[f"{layer}:{name}{end}"] = values_of(array, what)
        metadata = {_KEY: json.dumps(self.shapes)}
        write_together({path: safetensors.numpy.save(tensors, metadata)})

    @classmethod
    def load(cls, path: FilePath) -> "Statistics":
        """Those that `save` wrote. **Raises:** `CheckpointError` if the file is another one."""
        tensors, metadata = read_file(path)
        try:
            shapes = {
                layer: tuple(map(int, it)) for layer, it in json.loads(metadata[_KEY]).items()
            }
        except (KeyError, ValueError, TypeError, AttributeError) as err:
            raise CheckpointError(
                f"{os.fspath(path)!r} does not hold statistics. Give a file that `Statistics.save` "
                "wrote."
            ) from err
        found: dict[str, dict[str, Array | Factor]] = {layer: {} for layer in shapes}
        for tensor, values in tensors.items():
            layer, _, name = tensor.rpartition(":")
            array = jnp.array(values)
            is_factor = name.endswith(_FACTOR)
            found.setdefault(layer, {})[name.removesuffix(_FACTOR)] = (
                Factor(array) if is_factor else array
            )
        return cls(found, shapes)

    def _table(self) -> Table:
        rows = (
            (show_path(path), ", ".join(f"{n} {show_array(_held(v))}" for n, v in arrays.items()))
            for path, arrays in self._found.items()
        )
        return table_by_path("Statistics", [("path", "left"), ("means", "left")], rows)


def _held(value: Array | Factor) -> Array:
    return value.F if isinstance(value, Factor) else value


def _whole(value: Array | Factor) -> Array:
    if isinstance(value, Factor):
        return value.F @ jnp.swapaxes(value.F, -1, -2)
    return value
