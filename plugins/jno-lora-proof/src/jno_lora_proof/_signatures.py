"""Numbers that identify a matrix, or outputs, whatever their size. They need NumPy alone.

`jno_lora_peft/proof.py` repeats them, for machines without JAX: a test compares the two.
"""

import numpy as np
from jaxtyping import Float, Shaped

WIDTH = 64  # the numbers of a sketch
ENTRIES = slice(5, 9)  # of a signature: those that are linear in the matrix


def _hashes(size: int, seed: int) -> np.ndarray:
    """Fixed pseudo-random 32-bit numbers, the same in every version of NumPy."""
    x = np.arange(1, size + 1, dtype=np.uint32) * np.uint32(0x9E3779B1) ^ np.uint32(seed * 7919)
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        x = (x ^ (x >> np.uint32(shift))) * np.uint32(factor)
    return x ^ (x >> np.uint32(16))


def signs(size: int, seed: int) -> Float[np.ndarray, " size"]:
    """Fixed numbers 1 and -1."""
    return np.where(_hashes(size, seed) & 1, 1.0, -1.0)


def signature(array: Shaped[np.ndarray, "..."]) -> Float[np.ndarray, "9"]:
    """Nine numbers of an array, as a matrix `D` with the rows of its first axis.

    With fixed vectors `v`, `u` of two signs each: `|D|`, `|D v|` and `|u D|`, which reorderings of
    the rows, or the columns, keep, and `u D v`, which are linear in `D`.
    """
    matrix = as_reals(array)
    rows, columns = matrix.shape
    left = np.stack([signs(rows, 1), signs(rows, 2)])
    right = np.stack([signs(columns, 3), signs(columns, 4)])
    out, into = matrix @ right.T, left @ matrix
    norms = [np.linalg.norm(matrix), *np.linalg.norm(out, axis=0), *np.linalg.norm(into, axis=1)]
    return np.asarray([*norms, *(left @ out).ravel()], np.float64)


def as_reals(array: Shaped[np.ndarray, "..."]) -> Float[np.ndarray, "rows columns"]:
    """An array as a real matrix in double precision. Complex numbers become two columns."""
    array = np.asarray(array)
    rows = array.shape[0] if array.ndim else 1
    matrix = array.reshape(rows, -1)
    if np.iscomplexobj(matrix):
        matrix = np.concatenate([np.real(matrix), np.imag(matrix)], axis=1)
    return matrix.astype(np.float64)


def sketch(outputs: Shaped[np.ndarray, "examples ..."]) -> Float[np.ndarray, "examples width"]:
    """A random projection of each example's outputs (a count sketch), which keeps distances."""
    matrix = as_reals(outputs)
    hashes = _hashes(matrix.shape[1], 5)
    signed = np.where(hashes & 1, matrix, -matrix)
    buckets = (hashes >> np.uint32(8)) % np.uint32(WIDTH)
    return np.stack([np.bincount(buckets, row, WIDTH) for row in signed])
