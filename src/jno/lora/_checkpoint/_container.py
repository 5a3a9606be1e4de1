"""Safetensors files, with a checksum of each array, and JSON files.

The NumPy side of the `safetensors` library (0.8) cannot read float8, and maps the file into memory:
if the file is cut short meanwhile, the process ends (SIGBUS). So this module reads the arrays.
"""

import contextlib
import io
import json
import math
import os
import reprlib
import zlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from .._errors import CheckpointError
from .._paths import FEW, bullets

FilePath = str | os.PathLike[str]

# The dtypes of the format that NumPy can hold, with JAX's types.
DTYPES = {
    "BOOL": np.dtype(np.bool_),
    **{f"I{8 * size}": np.dtype(f"i{size}") for size in (1, 2, 4, 8)},
    **{f"U{8 * size}": np.dtype(f"u{size}") for size in (1, 2, 4, 8)},
    "F8_E4M3": np.dtype(jnp.float8_e4m3fn),
    "F8_E5M2": np.dtype(jnp.float8_e5m2),
    "BF16": np.dtype(jnp.bfloat16),
    **{f"F{8 * size}": np.dtype(f"f{size}") for size in (2, 4, 8)},
    "C64": np.dtype(np.complex64),
}

# The key in the metadata, and the key in its JSON of the checksum of all other metadata: no array
# can have this name.
_CHECKSUMS, _METADATA = "jno.lora.crc32", "__metadata__"


class MalformedError(ValueError):
    """A file cannot be read. Becomes a `CheckpointError` that names the file."""


def parse_json(content: str | bytes, what: str) -> dict[str, Any]:
    """The JSON object in `content`. **Raises:** `MalformedError`."""
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as err:
        raise MalformedError(f"{what} is damaged, not text, or not JSON: {err}") from err
    if not isinstance(value, dict):
        raise MalformedError(f"{what} is {brief(value)}, which is not a JSON object")
    return value


def brief(value: Any) -> str:
    """`value` as short ASCII text, for a message."""
    return reprlib.repr(value).encode("ascii", "backslashreplace").decode()


class Tensor(NamedTuple):
    """One array of a file: `begin` is the offset of its bytes."""

    dtype: np.dtype
    shape: tuple[int, ...]
    begin: int

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class Container:
    """An open file with a valid header."""

    def __init__(self, path: FilePath, file: io.BufferedReader):
        self._file = file
        self.nbytes = os.fstat(file.fileno()).st_size
        header, begin = _checked_header(path, file)
        self.metadata = header.pop("__metadata__", None) or {}
        self.tensors = {name: _tensor(name, info, begin) for name, info in header.items()}
        sums = self.metadata.pop(_CHECKSUMS, None)
        self._checksums = None if sums is None else parse_json(sums, "its checksums")
        self._check({_METADATA: _as_bytes(self.metadata)})

    def read_all(self) -> dict[str, np.ndarray]:
        arrays = {name: self._read(tensor) for name, tensor in self.tensors.items()}
        self._check(arrays)
        return arrays

    def _check(self, arrays: Mapping[str, np.ndarray]) -> None:
        if (sums := self._checksums) is None:  # other programs, and jno-lora up to 0.3, write none
            return
        if damaged := [name for name in arrays if sums.get(name) != _checksum(arrays[name])]:
            raise MalformedError(
                "it is damaged, or another program changed it: these arrays are not the arrays "
                f"that were saved:\n{bullets(map(brief, damaged), FEW)}\n"
                "Copy the file again from where it is whole, or save it again"
            )

    def _read(self, tensor: Tensor) -> np.ndarray:
        raw = np.empty(tensor.nbytes, np.uint8)
        self._file.seek(tensor.begin)
        if self._file.readinto(raw.data) != tensor.nbytes:
            raise MalformedError("it became shorter while it was read")
        return raw.view(tensor.dtype).reshape(tensor.shape)


def serialised(tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> bytes:
    """A safetensors file of these arrays, of `DTYPES`, with their checksums in its metadata."""
    # The library writes metadata in a random order, so that no two files would be the same.
    parts = {**tensors, _METADATA: _as_bytes(metadata)}
    sums = json.dumps({name: _checksum(array) for name, array in parts.items()})
    header: dict[str, Any] = {"__metadata__": {**metadata, _CHECKSUMS: sums}}
    dtypes, end = {dtype: name for name, dtype in DTYPES.items()}, 0
    # Large items first, as the format asks for aligned arrays.
    names = sorted(tensors, key=lambda name: (-tensors[name].itemsize, name))
    for name in names:
        dtype, shape, begin = dtypes[tensors[name].dtype], tensors[name].shape, end
        end += tensors[name].nbytes
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return b"".join([len(text).to_bytes(8, "little"), text, *(_raw(tensors[n]) for n in names)])


def _raw(array: np.ndarray) -> memoryview:
    return array.reshape(-1).view(np.uint8).data


def _checksum(array: np.ndarray) -> str:
    # For accidents, so speed counts: `python -m benchmarks.base_values`.
    return f"{zlib.crc32(_raw(array)):08x}"


def _as_bytes(metadata: Mapping[str, str]) -> np.ndarray:
    return np.frombuffer(json.dumps(dict(metadata), sort_keys=True).encode(), np.uint8)


def read_file(path: FilePath) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """All arrays of a safetensors file, and its metadata.

    **Raises:** `CheckpointError`, which names the file, if it cannot be read, or if an array does
    not have the checksum that `write_file` wrote.
    """
    with opened(path) as file:
        container = Container(path, file)
        return container.read_all(), container.metadata


def read_json(path: FilePath) -> dict[str, Any]:
    """The JSON object in a file.

    **Raises:** `CheckpointError`, which names the file, if it cannot be read.
    """
    with opened(path) as file:
        return parse_json(file.read(), "its content")


@contextlib.contextmanager
def opened(path: FilePath) -> Iterator[io.BufferedReader]:
    """Open the file at `path` for reading.

    **Raises:** `CheckpointError`, which names the file, also for a `MalformedError` in the block.
    """
    try:
        with open(path, "rb") as file:
            yield file
    except MalformedError as err:
        raise CheckpointError(f"{os.fspath(path)!r} cannot be used: {err}.") from err
    except OSError as err:
        raise CheckpointError(f"{os.fspath(path)!r} cannot be read: {err.strerror}.") from err


def _checked_header(path: FilePath, file: io.BufferedReader) -> tuple[dict[str, Any], int]:
    """The header as JSON, and the offset of its end."""
    import safetensors  # here, because only files need it

    try:
        with safetensors.safe_open(path, framework="numpy"):  # reads the header only
            length = int.from_bytes(file.read(8), "little")
            return parse_json(file.read(length), "its header"), 8 + length
    except safetensors.SafetensorError as err:
        raise MalformedError(
            "it is not a safetensors file, or its header does not fit its content: it was cut "
            f"short, something was added, or it was changed ({err})"
        ) from err


def _tensor(name: str, info: dict[str, Any], begin: int) -> Tensor:
    dtype, shape = info["dtype"], info["shape"]
    if dtype not in DTYPES or len(info) != 3:
        raise MalformedError(
            f"the array {brief(name)} is described by {brief(info)}; expected are a dtype of "
            f"{', '.join(DTYPES)}, a shape and data_offsets"
        )
    return Tensor(DTYPES[dtype], tuple(shape), begin + info["data_offsets"][0])
