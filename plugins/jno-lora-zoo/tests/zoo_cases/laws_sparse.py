"""Laws of coefficients: of transforms, of single entries, between factors, in NumPy and float64."""

from typing import Any

import numpy as np

from .laws import law


def _as_many_as_lora(r: int, out: int, inputs: int) -> int:
    return min(r * (out + inputs), out * inputs)


@law("AdaLoRA", parameters=lambda r, out, inputs: r * (out + inputs + 1))
def _adalora(f: Any, W: Any, r: int, alpha: float) -> Any:
    return W + alpha / r * f.lora_B @ np.diag(f.lora_E) @ f.lora_A


@law("DeLoRA", parameters=lambda r, out, inputs: r * (out + inputs) + 1)
def _delora(f: Any, W: Any, r: int, alpha: float) -> Any:
    update = np.zeros_like(W)
    for b, a in zip(f.lora_B.T, f.lora_A, strict=True):
        update += np.outer(b, a) / (np.linalg.norm(a) * np.linalg.norm(b))
    return W + f.strength / r * update * np.linalg.norm(W, axis=0)


@law("TinyLoRA", parameters=lambda r, out, inputs: 64)
def _tinylora(f: Any, W: Any, r: int, alpha: float) -> Any:
    R = sum(v * P for v, P in zip(f.v, f.P, strict=True))
    U, S, Vt = np.linalg.svd(W, full_matrices=False)
    # The signs of the triplets are free, and are taken from the adapter.
    signs = np.sign(np.sum(Vt[:r] * f.lora_A, axis=1))
    return W + (U[:, :r] * S[:r] * signs) @ R @ (signs[:, None] * Vt[:r])


def _places(digits: Any, inputs: int) -> Any:
    """Rows and columns of positions that are written with the base 256, lowest digit first."""
    places = [divmod(int(sum(d * 256**k for k, d in enumerate(row))), inputs) for row in digits]
    assert len(set(places)) == len(places)
    return places


def _scatter(values: Any, digits: Any, shape: tuple[int, int]) -> Any:
    matrix = np.zeros(shape)
    for value, place in zip(values, _places(digits, shape[1]), strict=True):
        matrix[place] = value
    return matrix


@law("SHiRA", parameters=_as_many_as_lora)
def _shira(f: Any, W: Any, r: int, alpha: float) -> Any:
    return W + _scatter(f.values, f.positions, W.shape)


@law("SuperTuning", parameters=_as_many_as_lora)
def _supertuning(f: Any, W: Any, r: int, alpha: float) -> Any:
    update = _scatter(f.values, f.positions, W.shape)
    chosen = _scatter(np.ones(len(f.values)), f.positions, W.shape) > 0
    assert np.min(np.abs(W[chosen])) >= np.max(np.abs(W[~chosen]), initial=0)
    return W + update


@law("FourierFT", parameters=_as_many_as_lora)
def _fourierft(f: Any, W: Any, r: int, alpha: float) -> Any:
    out, inputs = W.shape
    rows, columns = np.indices(W.shape)
    update = np.zeros(W.shape)
    for c, (p, q) in zip(f.coefficients, _places(f.positions, inputs), strict=True):
        update += c * np.cos(2 * np.pi * (p * rows / out + q * columns / inputs))
    return W + alpha * update / (out * inputs)


@law("WaveFT", parameters=_as_many_as_lora)
def _waveft(f: Any, W: Any, r: int, alpha: float) -> Any:
    """Haar: each of the four quarters has one number for each square of two by two entries."""
    out, inputs = W.shape
    even = [size + size % 2 for size in W.shape]
    quarters = np.zeros(even)
    quarters[:out, :inputs] = _scatter(f.coefficients, f.positions, W.shape)
    height, width = even[0] // 2, even[1] // 2
    update = np.zeros(even)
    for row, column in np.ndindex(*even):
        i, j = row // 2, column // 2
        down, right = (-1) ** row, (-1) ** column
        update[row, column] = (
            quarters[i, j]
            + down * quarters[i, width + j]
            + right * quarters[height + i, j]
            + down * right * quarters[height + i, width + j]
        ) / 2
    return W + alpha * update[:out, :inputs]
