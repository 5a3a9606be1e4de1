"""Read and check safetensors and JSON files, and write them atomically.

The NumPy interface of the `safetensors` library (0.8) cannot read float8, so the library only
checks a header against the size of its file, and this module reads the arrays.
"""

import contextlib
import errno
import json
import os
import reprlib
import secrets
import stat
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from .._errors import CheckpointError
from .._paths import FEW, bullets, show_array

FilePath = str | os.PathLike[str]

# The dtypes of the format that NumPy can represent, with JAX's types.
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

# The header stores the metadata under this name, so no array can have this name.
_METADATA = "__metadata__"
# The metadata store the checksums of each array, and of all other metadata, under this name.
_CHECKSUMS = "jno.lora.crc32"


class MalformedError(ValueError):
    """A file cannot be read. Becomes a `CheckpointError` that names the file."""


def read_file(path: FilePath) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """All arrays of a safetensors file, and its metadata.

    **Raises:** `CheckpointError`, which names the file, if it cannot be read, or if an array does
    not have the checksum that `write_file` wrote.
    """
    with errors_of(path, "read"):
        return read_arrays(path)


def read_json(path: FilePath) -> dict[str, Any]:
    """The JSON object in a file.

    **Raises:** `CheckpointError`, which names the file, if it cannot be read.
    """
    with errors_of(path, "read"):
        return parse_json(Path(path).read_bytes(), "its content")


def parse_json(content: str | bytes, what: str) -> dict[str, Any]:
    """The JSON object in `content`. **Raises:** `MalformedError`."""
    try:
        value = json.loads(content)
    except ValueError as err:
        raise MalformedError(f"{what} is damaged, not text, or not JSON: {err}") from err
    if not isinstance(value, dict):
        raise MalformedError(f"{what} is {brief(value)}, which is not a JSON object")
    return value


def brief(value: object) -> str:
    """`value` as short ASCII text, for a message."""
    return reprlib.repr(value).encode("ascii", "backslashreplace").decode()


def read_arrays(
    path: FilePath, *, values: bool = True
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The arrays of a safetensors file, and its metadata.

    - `values`: whether to read the arrays. Otherwise they are zeros, broadcast from one number.

    **Raises:** `MalformedError` or `OSError`.
    """
    import safetensors  # here, because only files need it

    with open(path, "rb") as file:
        try:
            with safetensors.safe_open(path, framework="numpy"):  # checks the header
                begin = 8 + int.from_bytes(file.read(8), "little")
        except safetensors.SafetensorError as err:
            raise MalformedError(f"it is damaged, or not a safetensors file: {err}") from err
        header = parse_json(file.read(begin - 8), "its header")
        metadata = header.pop(_METADATA, None) or {}
        checksums = metadata.pop(_CHECKSUMS, None)  # other programs, and version 0.3, write none
        arrays: dict[str, np.ndarray] = {}
        for name, info in header.items():
            if info["dtype"] not in DTYPES:
                raise MalformedError(
                    f"the array {brief(name)} has the dtype {info['dtype']}; expected is one of "
                    f"{', '.join(DTYPES)}"
                )
            dtype, (start, stop) = DTYPES[info["dtype"]], info["data_offsets"]
            if values:
                file.seek(begin + start)
                raw = np.fromfile(file, np.uint8, stop - start)
                arrays[name] = raw.view(dtype).reshape(info["shape"])
            else:
                arrays[name] = np.broadcast_to(np.zeros((), dtype), info["shape"])
    if checksums is not None:
        _check({**(arrays if values else {}), _METADATA: _as_bytes(metadata)}, checksums)
    return arrays, metadata


def _check(arrays: Mapping[str, np.ndarray], checksums: str) -> None:
    expected = parse_json(checksums, "its checksums")
    if damaged := [name for name in arrays if expected.get(name) != _checksum(arrays[name])]:
        raise MalformedError(
            "it is damaged, or another program changed it: these arrays are not the arrays "
            f"that were saved:\n{bullets(map(brief, damaged), FEW)}\n"
            "Copy the file again from where it is whole, or save it again"
        )


def serialised(tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> bytes:
    """A safetensors file of these arrays, of `DTYPES`, with their checksums in its metadata."""
    # The library writes metadata in a random order, so that no two files would be the same.
    parts = {**tensors, _METADATA: _as_bytes(metadata)}
    sums = json.dumps({name: _checksum(array) for name, array in parts.items()})
    header: dict[str, Any] = {_METADATA: {**metadata, _CHECKSUMS: sums}}
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
    # Only detects accidents, so speed matters: `python -m benchmarks.base_values`.
    form = zlib.crc32(show_array(array).encode())
    return f"{zlib.crc32(_raw(array), form):08x}"


def _as_bytes(metadata: Mapping[str, str]) -> np.ndarray:
    return np.frombuffer(json.dumps(dict(metadata), sort_keys=True).encode(), np.uint8)


@contextlib.contextmanager
def errors_of(path: FilePath, action: str) -> Iterator[None]:
    """Turn errors in the block into a `CheckpointError` that names the file."""
    try:
        yield
    except MalformedError as err:
        raise CheckpointError(f"{os.fspath(path)!r} cannot be used: {err}.") from err
    except OSError as err:
        why = err.strerror or err
        raise CheckpointError(f"{os.fspath(path)!r} cannot be {action}: {why}.") from err


def write_file(
    path: FilePath, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]
) -> None:
    """Write arrays and metadata into one safetensors file, which `read_file` reads.

    The file has a checksum of each array and of the metadata. An old file is replaced atomically.

    **Raises:** `CheckpointError` if the file cannot be written.
    """
    write_atomically(path, serialised(tensors, metadata))


def write_atomically(path: FilePath, content: bytes) -> None:
    """Write a file. An old file is replaced atomically, keeps its permissions, and may be a link.

    **Raises:** `CheckpointError`, which names the file, if writing fails. Then an old file is as it
    was.
    """
    with errors_of(path, "written"), written_beside(path, content) as (new, target):
        os.replace(new, target)


@contextlib.contextmanager
def written_beside(path: FilePath, content: bytes) -> Iterator[tuple[Path, Path]]:
    """Two paths: a new file with `content`, and the file that it can replace."""
    target = Path(os.path.realpath(path))
    # File systems limit the bytes of a name, and a character may take four, so the name is cut.
    temporary = target.with_name(f".{target.name[:40]}.{secrets.token_hex(8)}.tmp")
    try:
        permissions = stat.S_IMODE(target.stat().st_mode) if target.exists() else None
        if permissions is not None and not (target.is_file() and os.access(target, os.W_OK)):
            raise PermissionError(errno.EACCES, "it is read-only, or not a file")
        with open(temporary, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if permissions is not None:
            os.chmod(temporary, permissions)
        yield temporary, target
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
