"""Safetensors files, read with distrust.

The `safetensors` library writes them. For reading, its NumPy side lacks bfloat16, lets duplicate
keys pass, and maps the file into memory, where a file that somebody cuts short ends the process.
Here every number of the header is held against the size of the file before anything is allocated.
"""

import contextlib
import dataclasses
import io
import math
import os
import stat
from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np

from .._errors import CheckpointError
from ._json import MalformedError, brief, is_count, parse_json

FilePath = str | os.PathLike[str]

# What the format knows and NumPy (with JAX's types) can hold.
DTYPES = {
    "BOOL": np.dtype(np.bool_),
    **{f"I{8 * size}": np.dtype(f"i{size}") for size in (1, 2, 4, 8)},
    **{f"U{8 * size}": np.dtype(f"u{size}") for size in (1, 2, 4, 8)},
    "F8_E4M3": np.dtype(jnp.float8_e4m3fn),
    "F8_E5M2": np.dtype(jnp.float8_e5m2),
    "BF16": np.dtype(jnp.bfloat16),
    "F16": np.dtype(np.float16),
    "F32": np.dtype(np.float32),
    "F64": np.dtype(np.float64),
    "C64": np.dtype(np.complex64),
}

# A header takes about a kilobyte for each adapter.
MOST_HEADER_BYTES = 32 * 2**20
_MOST_AXES = 32


@dataclasses.dataclass(frozen=True)
class Tensor:
    """One array of a file: its form, and where its bytes begin and end."""

    dtype: np.dtype
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def nbytes(self) -> int:
        """The number of its bytes."""
        return self.end - self.begin


class Container:
    """An open file whose header is in order. Arrays are read when they are asked for."""

    def __init__(self, file: io.BufferedReader):
        self._file = file
        self.nbytes = os.fstat(file.fileno()).st_size
        header, begin = _header(file, self.nbytes)
        self.metadata = _metadata(header.pop("__metadata__", {}))
        self.tensors = {name: _tensor(name, info, begin) for name, info in header.items()}
        _check_that_bytes_are_used_once(self.tensors, begin, self.nbytes)

    def read(self, name: str) -> np.ndarray:
        """The values of one array."""
        tensor = self.tensors[name]
        raw = np.empty(tensor.nbytes, np.uint8)
        self._file.seek(tensor.begin)
        if self._file.readinto(raw.data) != tensor.nbytes:
            raise MalformedError("it became shorter while it was read")
        if tensor.dtype == np.bool_ and raw.size and raw.max() > 1:
            raise MalformedError(f"the array {brief(name)} of bools holds more than 0 and 1")
        return raw.view(tensor.dtype).reshape(tensor.shape)


@contextlib.contextmanager
def opened(path: FilePath) -> Iterator[Container]:
    """The safetensors file at `path`.

    **Raises:** `CheckpointError`, which names the file, for everything that is wrong with it: also
    what is found when an array is read, and every `MalformedError` of the `with` block.
    """
    try:
        with regular_file(path) as file:
            yield Container(file)
    except MalformedError as err:
        raise CheckpointError(f"{os.fspath(path)!r} cannot be used: {err}.") from err
    except OSError as err:
        raise CheckpointError(f"{os.fspath(path)!r} cannot be read: {err.strerror}.") from err
    except MemoryError as err:
        raise CheckpointError(f"{os.fspath(path)!r} is larger than the memory there is.") from err


def regular_file(path: FilePath) -> io.BufferedReader:
    """The file at `path`, open to be read.

    **Raises:** `MalformedError` if something else is there, such as a pipe; `OSError`.
    """
    # Not blocking, because the open of a pipe waits for somebody who writes.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        descriptor = os.open(path, flags)
    except ValueError as err:
        raise MalformedError(f"its path is none: {err}") from err
    try:
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            kind = "a directory" if stat.S_ISDIR(mode) else "a pipe or a device"
            raise MalformedError(f"it is {kind}, not a file")
        return open(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def _header(file: io.BufferedReader, size: int) -> tuple[dict[str, Any], int]:
    """The header, and where it ends."""
    if size < 8:
        raise MalformedError(
            f"it has only {size} bytes: it was cut short, or is no safetensors file"
        )
    length = int.from_bytes(file.read(8), "little")
    if length > size - 8:
        raise MalformedError(
            f"its header should have {length:,} bytes, but the file has only {size - 8:,} more: it "
            "was cut short, or is no safetensors file"
        )
    if length > MOST_HEADER_BYTES:
        raise MalformedError(
            f"its header has {length:,} bytes; at most {MOST_HEADER_BYTES:,} are read"
        )
    try:
        text = file.read(length).decode()
    except UnicodeDecodeError as err:
        raise MalformedError(f"its header is damaged, or no text: {err}") from err
    return parse_json(text, "its header"), 8 + length


def _metadata(found: Any) -> dict[str, str]:
    if not isinstance(found, dict) or not all(isinstance(v, str) for v in found.values()):
        raise MalformedError("its metadata are not a JSON object of strings")
    return found


def _tensor(name: str, info: Any, begin: int) -> Tensor:
    what = f"the entry of the array {brief(name)} in its header"
    if not isinstance(info, dict) or info.keys() != {"dtype", "shape", "data_offsets"}:
        raise MalformedError(f"{what} does not hold dtype, shape and data_offsets, and no more")
    dtype = info["dtype"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise MalformedError(f"{what} has the dtype {brief(dtype)}, which cannot be read")
    shape = shape_of(info["shape"], what)
    offsets = info["data_offsets"]
    if not (isinstance(offsets, list) and len(offsets) == 2 and all(map(is_count, offsets))):
        raise MalformedError(
            f"{what} has the data_offsets {brief(offsets)}, not two numbers of bytes"
        )
    first, last = offsets
    needed = math.prod(shape) * DTYPES[dtype].itemsize
    if last - first != needed:
        raise MalformedError(
            f"{what} gives it {last - first:,} bytes, but {dtype}{list(shape)} has {needed:,}"
        )
    return Tensor(DTYPES[dtype], shape, begin + first, begin + last)


def shape_of(found: Any, what: str) -> tuple[int, ...]:
    """`found` as a shape that an array can have.

    **Raises:** `MalformedError`.
    """
    if not isinstance(found, list) or len(found) > _MOST_AXES or not all(map(is_count, found)):
        raise MalformedError(f"{what} has the shape {brief(found)}, which no array has")
    # Also of an array without elements, NumPy wants to count as if there were some.
    if math.prod(max(axis, 1) for axis in found) > 2**56:
        raise MalformedError(f"{what} has the shape {brief(found)}, which is too large")
    return tuple(found)


def _check_that_bytes_are_used_once(tensors: dict[str, Tensor], begin: int, size: int) -> None:
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end)):
        if tensor.begin != begin:
            raise MalformedError(
                f"the bytes of the array {brief(name)} do not begin where the ones before end"
            )
        begin = tensor.end
    if begin != size:
        raise MalformedError(
            f"its arrays should end after {begin:,} bytes, but it has {size:,}: it was cut short, "
            "or something was added"
        )
