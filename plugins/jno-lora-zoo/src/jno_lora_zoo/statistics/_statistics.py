"""`Statistics`: the results of calibration by path and name, in memory and in a file."""

import json
import os
from collections.abc import Iterator, Mapping

import jax.numpy as jnp
from jaxtyping import Array

from jno.lora import CheckpointError, Table
from jno.lora.extending import (
    Printed,
    read_file,
    show_array,
    show_path,
    table,
    values_of,
    write_file,
)

# The suffix of the key of `F`, `(..., width, size)`, which represents the covariance `F F^T`.
FACTOR = "/factor"
_KEY = "jno.lora.statistics"  # in the metadata of a file


class Statistics(Printed[str], Mapping[str, Mapping[str, Array]]):
    """The statistics of each layer, by path and then by name. Prints as a table.

    A plugin's statistic is called `"package.name"`. Arrays of stacked layers begin with the axes of
    the stack. Indexing computes a covariance from its sketch.

    - `shapes`: the `(out, in)` of each layer's matrix, by path.
    """

    def __init__(
        self, means: Mapping[str, Mapping[str, Array]], shapes: Mapping[str, tuple[int, ...]]
    ):
        self.shapes = dict(shapes)
        self._means = {path: dict(arrays) for path, arrays in means.items()}
        self.rows = tuple(self._means)

    def __getitem__(self, path: str) -> dict[str, Array]:
        arrays = self._means[path].items()
        return {_name(key): x @ x.mT if key.endswith(FACTOR) else x for key, x in arrays}

    def __iter__(self) -> Iterator[str]:
        return iter(self._means)

    def __len__(self) -> int:
        return len(self._means)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write them into one safetensors file. **Raises:** `CheckpointError` if that fails."""
        tensors = {
            f"{layer}:{key}": values_of(array, f"the {_name(key)} of {show_path(layer)!r}")
            for layer, arrays in self._means.items()
            for key, array in arrays.items()
        }
        write_file(path, tensors, {_KEY: json.dumps(self.shapes)})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Statistics":
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
        means: dict[str, dict[str, Array]] = {layer: {} for layer in shapes}
        for tensor, values in tensors.items():
            layer, _, key = tensor.rpartition(":")
            means.setdefault(layer, {})[key] = jnp.array(values)
        return cls(means, shapes)

    def _table(self) -> Table:
        rows = (
            (show_path(path), ", ".join(f"{_name(k)} {show_array(x)}" for k, x in arrays.items()))
            for path, arrays in self._means.items()
        )
        return table("Statistics", [("path", "left"), ("means", "left")], rows, by_path=True)


def _name(key: str) -> str:
    return key.removesuffix(FACTOR)
