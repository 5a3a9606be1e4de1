"""Files of safetensors that are larger than the memory."""

import contextlib
import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from jno.lora import PeftFormatError
from jno.lora.extending import tracked

from ._arrays import Array

_DTYPES = {
    "BOOL": np.dtype(np.bool_),
    "C64": np.dtype(np.complex64),
    "BF16": np.dtype(jnp.bfloat16),
    "F8_E4M3": np.dtype(jnp.float8_e4m3fn),
    "F8_E5M2": np.dtype(jnp.float8_e5m2),
    **{f"{kind}{8 * n}": np.dtype(f"{kind.lower()}{n}") for kind in "IU" for n in (1, 2, 4, 8)},
    **{f"F{8 * n}": np.dtype(f"f{n}") for n in (2, 4, 8)},
}
_CODES = {dtype: code for code, dtype in _DTYPES.items()}


def map_safetensors(path: Path) -> tuple[Mapping[str, Array], Mapping[str, str]]:
    """The arrays of a safetensors file, mapped into memory, and its metadata.

    **Raises:** `PeftFormatError` if the file cannot be read.
    """
    import safetensors

    try:
        with safetensors.safe_open(path, framework="numpy") as checked:  # checks the header
            metadata = checked.metadata() or {}
    except (safetensors.SafetensorError, OSError) as err:
        raise PeftFormatError(f"{os.fspath(path)!r} cannot be read: {err}") from err
    with open(path, "rb") as file:
        begin = 8 + int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(begin - 8))
    header.pop("__metadata__", None)
    content = np.memmap(path, np.uint8, "r")
    arrays: dict[str, Array] = {}
    for name, info in header.items():
        if info["dtype"] not in _DTYPES:
            raise PeftFormatError(f"{name} in {os.fspath(path)!r} has the dtype {info['dtype']}.")
        start, stop = (begin + offset for offset in info["data_offsets"])
        arrays[name] = content[start:stop].view(_DTYPES[info["dtype"]]).reshape(info["shape"])
    return arrays, metadata


def write_safetensors(
    path: Path, arrays: Mapping[str, Array], make: Callable[[str], np.ndarray]
) -> None:
    """Write the array that `make` gives for each name, one after another.

    The file is complete under its name, or not there.

    - `arrays`: anything with the shapes and dtypes of the arrays, by name.

    **Raises:** `PeftFormatError` for a dtype that cannot be written.
    """
    header = _header(arrays)
    temporary = path.with_name(f".{path.name[:40]}.tmp")
    bar = tracked(arrays, f"Writing {path.name}")
    with open(temporary, "wb") as file, contextlib.closing(bar) as names:
        file.write(len(header).to_bytes(8, "little") + header)
        for name in names:
            file.write(np.ascontiguousarray(make(name)).reshape(-1).view(np.uint8).data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _header(arrays: Mapping[str, Array]) -> bytes:
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, array in arrays.items():
        dtype, start = np.dtype(array.dtype), end
        if dtype not in _CODES:
            raise PeftFormatError(f"{name} has the dtype {dtype}, which cannot be written.")
        end += dtype.itemsize * math.prod(array.shape)
        entries[name] = {"dtype": _CODES[dtype], "shape": array.shape, "data_offsets": [start, end]}
    text = json.dumps(entries).encode()
    return text + b" " * (-len(text) % 8)
