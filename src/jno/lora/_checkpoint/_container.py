"""Safetensors and JSON files, read with distrust.

The `safetensors` library accepts duplicate keys, headers of any size, and bools other than 0 and 1.
Its NumPy side (0.8) cannot read float8, and maps the file into memory: if the file is cut short
meanwhile, the process ends (SIGBUS). So this module reads the arrays itself.
"""

import collections
import contextlib
import io
import json
import math
import os
import reprlib
import stat
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from .._errors import CheckpointError

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

# A header takes about a kilobyte for each adapter.
MOST_JSON_BYTES = 32 * 2**20


class MalformedError(ValueError):
    """A file cannot be read. Becomes a `CheckpointError` that names the file."""


def parse_json(content: str | bytes, what: str) -> dict[str, Any]:
    """The JSON object in `content`. **Raises:** `MalformedError`, also for duplicate keys, NaN."""
    try:
        text = content.decode() if isinstance(content, bytes) else content
        hooks = {"object_pairs_hook": _without_duplicates, "parse_constant": _refuse_constant}
        value = json.loads(text, **hooks)
    except (ValueError, RecursionError) as err:
        raise MalformedError(f"{what} is damaged, not text, or not JSON: {err}") from err
    if not isinstance(value, dict):
        raise MalformedError(f"{what} is {brief(value)}, which is not a JSON object")
    return value


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    unique = dict(pairs)
    if len(unique) < len(pairs):
        repeated, _ = collections.Counter(key for key, _ in pairs).most_common(1)[0]
        raise ValueError(f"the key {brief(repeated)} is there twice")
    return unique


def _refuse_constant(text: str) -> Any:
    raise ValueError(f"{text} is not JSON")


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
        header, begin = _checked_header(path, file, self.nbytes)
        self.metadata = header.pop("__metadata__", None) or {}
        self.tensors = {name: _tensor(name, info, begin) for name, info in header.items()}

    def read_all(self) -> dict[str, np.ndarray]:
        return {name: self._read(name, tensor) for name, tensor in self.tensors.items()}

    def _read(self, name: str, tensor: Tensor) -> np.ndarray:
        raw = np.empty(tensor.nbytes, np.uint8)
        self._file.seek(tensor.begin)
        if self._file.readinto(raw.data) != tensor.nbytes:
            raise MalformedError("it became shorter while it was read")
        if tensor.dtype == np.bool_ and raw.size and raw.max() > 1:
            raise MalformedError(f"the array {brief(name)} of bools holds more than 0 and 1")
        return raw.view(tensor.dtype).reshape(tensor.shape)


def read_file(path: FilePath) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """All arrays of a safetensors file, and its metadata.

    **Raises:** `CheckpointError`, which names the file, if it cannot be read.
    """
    with opened(path) as file:
        container = Container(path, file)
        return container.read_all(), container.metadata


def read_json(path: FilePath) -> dict[str, Any]:
    """The JSON object in a file.

    **Raises:** `CheckpointError`, which names the file, if it cannot be read. Duplicate keys and
    numbers such as NaN are errors.
    """
    with opened(path) as file:
        content = file.read(MOST_JSON_BYTES + 1)
        if len(content) > MOST_JSON_BYTES:
            raise MalformedError(f"it has more than {MOST_JSON_BYTES:,} bytes")
        return parse_json(content, "its content")


@contextlib.contextmanager
def opened(path: FilePath) -> Iterator[io.BufferedReader]:
    """Open the file at `path` for reading.

    **Raises:** `CheckpointError`, which names the file, also for a `MalformedError` in the block.
    """
    try:
        with _open(path) as file:
            kind = kind_of(os.fstat(file.fileno()))
            if kind != "a file":
                raise MalformedError(f"it is {kind}, not a file")
            yield file
    except MalformedError as err:
        raise CheckpointError(f"{os.fspath(path)!r} cannot be used: {err}.") from err
    except OSError as err:
        raise CheckpointError(f"{os.fspath(path)!r} cannot be read: {err.strerror}.") from err
    except MemoryError as err:
        raise CheckpointError(f"{os.fspath(path)!r} does not fit into memory.") from err


def _open(path: FilePath) -> io.BufferedReader:
    # A blocking open of a pipe would wait for a writer.
    non_blocking = getattr(os, "O_NONBLOCK", 0)
    try:
        return open(path, "rb", opener=lambda name, flags: os.open(name, flags | non_blocking))
    except ValueError as err:
        raise MalformedError(f"its path is invalid: {err}") from err


def kind_of(status: os.stat_result) -> str:
    if stat.S_ISREG(status.st_mode):
        return "a file"
    return "a directory" if stat.S_ISDIR(status.st_mode) else "a pipe or a device"


def _checked_header(
    path: FilePath, file: io.BufferedReader, size: int
) -> tuple[dict[str, Any], int]:
    """The header as JSON, and the offset of its end."""
    import safetensors  # here, because only files need it

    length = int.from_bytes(file.read(8), "little")
    if length > size - 8:
        raise MalformedError(
            "it is not a safetensors file, or was cut short: by its first 8 bytes, its header "
            f"should end after {8 + length:,} bytes, but the file has {size:,}"
        )
    if length > MOST_JSON_BYTES:
        problem = f"its header has {length:,} bytes; at most {MOST_JSON_BYTES:,} are read"
        raise MalformedError(problem)
    header = parse_json(file.read(length), "its header")
    try:
        with safetensors.safe_open(path, framework="numpy"):  # reads the header only
            return header, 8 + length
    except safetensors.SafetensorError as err:
        raise MalformedError(
            "its header does not fit its content: it was cut short, something was added, or it was "
            f"changed ({err})"
        ) from err


def _tensor(name: str, info: dict[str, Any], begin: int) -> Tensor:
    dtype, shape = info["dtype"], info["shape"]
    if dtype not in DTYPES or len(info) != 3:
        raise MalformedError(
            f"the array {brief(name)} is described by {brief(info)}; expected are a dtype of "
            f"{', '.join(DTYPES)}, a shape and data_offsets"
        )
    if not fits_numpy(shape):
        raise MalformedError(f"the shape {brief(shape)} of the array {brief(name)} is too large")
    return Tensor(DTYPES[dtype], tuple(shape), begin + info["data_offsets"][0])


def fits_numpy(shape: list[int]) -> bool:
    # NumPy's limit on the size counts an empty axis as 1.
    return len(shape) <= 32 and math.prod(max(axis, 1) for axis in shape) <= 2**56
