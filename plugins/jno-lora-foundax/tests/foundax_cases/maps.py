"""The maps of foundax's layers, in NumPy and float64: the definitions, and nothing else."""

import itertools
import math
from typing import Any

import numpy as np


def matrix_of(kernel: np.ndarray) -> np.ndarray:
    """The `(out, in)` matrix of a kernel `(*sizes, in, out)`: inputs are the slowest of a row."""
    rows = [kernel[..., o] for o in range(kernel.shape[-1])]
    return np.stack([np.moveaxis(row, -1, 0).ravel() for row in rows])


def kernel_of(matrix: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The kernel of that shape which has this matrix."""
    *sizes, inputs, outputs = shape
    kernel = np.empty(shape)
    for o, c in itertools.product(range(outputs), range(inputs)):
        kernel[..., c, o] = np.split(matrix[o], inputs)[c].reshape(sizes)
    return kernel


def convolution(layer: Any, kernel: np.ndarray, x: np.ndarray) -> np.ndarray:
    """`y[p, o] = b[o] + sum over k and c of K[k, c, o] xp[p * stride + k, first(o) + c]`.

    `xp` is the padded input, and `first(o)` the first channel of the group of output `o`.

    **Arguments:**

    - `layer`: has the settings and the bias; its kernel is not used.
    - `kernel`: `(*sizes, in / groups, out)`.
    - `x`: `(*points, in)`, or a batch of those.
    """
    *sizes, inputs, outputs = kernel.shape
    if x.ndim > len(sizes) + 1:
        return np.stack([convolution(layer, kernel, one) for one in x])
    groups = getattr(layer, "groups", 1)
    strides = getattr(layer, "strides", (1,) * len(sizes))
    padding = [(0, 0)] * len(sizes)
    if layer.padding == "SAME":
        # As many outputs as inputs (over the stride), with the odd place at the end.
        totals = [
            max((math.ceil(n / s) - 1) * s + k - n, 0)
            for n, s, k in zip(x.shape, strides, sizes, strict=False)
        ]
        padding = [(total // 2, total - total // 2) for total in totals]
    xp = np.pad(x, [*padding, (0, 0)])
    points = [(n - k) // s + 1 for n, k, s in zip(xp.shape, sizes, strides, strict=False)]
    y = np.zeros((*points, outputs))
    for place, k in itertools.product(np.ndindex(*points), np.ndindex(*sizes)):
        seen = xp[tuple(p * s + i for p, s, i in zip(place, strides, k, strict=True))]
        for g in range(groups):
            own = slice(g * outputs // groups, (g + 1) * outputs // groups)
            y[place][own] += seen[g * inputs : (g + 1) * inputs] @ kernel[k][:, own]
    return with_bias(y, layer.bias)


def transposed_convolution(layer: Any, kernel: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Each point `p` adds `K[k] x[p]` to the output at `first + p * stride - k`.

    With JAX's `conv_transpose` and `SAME` padding there are `stride` outputs for each input, and
    `first` is what `padding_before` says.

    **Arguments:** as for `convolution`; the kernel is `(*sizes, in, out)`, as the call reads it.
    """
    *sizes, _, outputs = kernel.shape
    *points, _ = x.shape
    strides = layer.strides
    assert layer.padding == "SAME"
    y = np.zeros((*(n * s for n, s in zip(points, strides, strict=True)), outputs))
    first = [padding_before(k, s) for k, s in zip(sizes, strides, strict=True)]
    for p, k in itertools.product(np.ndindex(*points), np.ndindex(*sizes)):
        place = tuple(f + i * s - j for f, i, s, j in zip(first, p, strides, k, strict=True))
        if all(0 <= q < n for q, n in zip(place, y.shape, strict=False)):
            y[place] += x[p] @ kernel[k]
    return with_bias(y, layer.bias)


def padding_before(size: int, stride: int) -> int:
    """Of the `size + stride - 2` places that are added to the spread input, those in front."""
    return size - 1 if stride > size - 1 else math.ceil((size + stride - 2) / 2)


def with_bias(y: np.ndarray, bias: Any) -> np.ndarray:
    return y if bias is None else y + np.asarray(bias).reshape(*[1] * (y.ndim - 1), -1)


def subsampled(layer: Any, W: np.ndarray, x: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """MPP: the columns (or rows) that the labels choose; of columns with a factor for how many."""
    bias = np.asarray(layer.bias)
    if not layer.subsample_in:
        return np.stack([x @ W[label] + bias[label] for label in labels], axis=-1)
    total = sum(x[..., i, None] * W[:, label] for i, label in enumerate(labels))
    return math.sqrt(W.shape[1] / len(labels)) * (total + bias)


def spectral(layer: Any, corners: list[np.ndarray], x: np.ndarray) -> np.ndarray:
    """FNO: `y(t) = sum over kept k of c_k Re(e^(i k t) W_k x^_k)`, `x^` the Fourier transform.

    `c_k` is 2 where the conjugate frequency, which the transform of real numbers leaves out, counts
    as well. A linear convolution has zeros after the input, so that it does not wrap around.

    **Arguments:**

    - `corners`: the matrices `(*modes, out, in)` of each corner of the spectrum: with the first
        frequencies of every axis, then with the last of the second axis, and so on.
    - `x`: `(*points, in)`.
    """
    *points, inputs = x.shape
    periods = [2 * n - 1 if layer.linear_conv else n for n in points]
    # No more than there are: of the last axis, those that are not conjugate to another.
    there_are = [(n + 1) // 2 for n in periods[:-1]] + [periods[-1] // 2 + 1]
    kept = [min(n, most) for n, most in zip(corners[0].shape, there_are, strict=False)]
    at = np.array(list(np.ndindex(*kept)))
    times = np.array(list(np.ndindex(*points)))
    y = 0.0
    ends = itertools.product(*[(False, True)] * (len(points) - 1), (False,))
    for matrices, negative in zip(corners, ends, strict=True):
        k = at - np.where(negative, kept, 0)
        wave = np.exp(2j * np.pi * (k / periods) @ times.T) / math.sqrt(math.prod(periods))
        transform = wave.conj() @ x.reshape(-1, inputs)
        product = (matrices[tuple(at.T)] @ transform[:, :, None])[:, :, 0]
        alone = (k[:, -1] == 0) | (2 * k[:, -1] == periods[-1])
        y = y + (wave.T @ (np.where(alone, 1, 2)[:, None] * product)).real
    return y.reshape(*points, -1)


def geometric(W: np.ndarray, W_0: np.ndarray, x: np.ndarray, *bases: np.ndarray) -> np.ndarray:
    """GeoFNO and PCNO: the same with bases of any points, and a real matrix at mode 0.

    **Arguments:**

    - `W`, `W_0`: `(*modes, out, in)`.
    - `x`: `(batch, in, points)`.
    - `bases`: cosines, sines and constants `(batch, points, *modes)`, then the same with weights.
    """
    modes = W.shape[:-2]

    def sum_over(W, wave, weighted):
        total = 0.0
        for k in np.ndindex(*W.shape[:-2]):
            at = (slice(None), slice(None), *k)
            transform = np.sum(x * weighted[at][:, None], axis=2)  # (batch, in)
            total = total + (transform @ W[k].T)[:, :, None] * wave[at][:, None]
        return total.real

    cos, sin, one, wcos, wsin, wone = bases
    assert cos.shape[2:] == modes
    return 2 * sum_over(W, cos + 1j * sin, wcos - 1j * wsin) + sum_over(W_0, one, wone)


def afno(layer: Any, w1: np.ndarray, w2: np.ndarray, x: np.ndarray) -> np.ndarray:
    """DPOT: `x + F^-1(w2 g(w1 F(x) + b1) + b2)` for each block of channels, on the kept modes.

    `g` acts on real and imaginary part.

    **Arguments:**

    - `w1`, `w2`: complex, `(blocks, out, in)`.
    - `x`: `(batch, height, width, channels)`.
    """
    batch, height, width, channels = x.shape
    blocks = len(w1)
    b1, b2 = (np.asarray(b)[0] + 1j * np.asarray(b)[1] for b in (layer.b1, layer.b2))
    kept = itertools.product(
        range(min(layer.modes, height)), range(min(layer.modes, width // 2 + 1))
    )
    rows, columns = np.arange(height)[:, None], np.arange(width)[None, :]
    y = x.astype(float)
    for k, m in kept:
        wave = np.exp(2j * np.pi * (k * rows / height + m * columns / width))
        wave = wave[None, :, :, None] / math.sqrt(height * width)
        transform = np.sum(wave.conj() * x, axis=(1, 2)).reshape(batch, blocks, -1)
        hidden = np.einsum("noi,bni->bno", w1, transform) + b1
        hidden = gelu(hidden.real) + 1j * gelu(hidden.imag)
        new = (np.einsum("noi,bni->bno", w2, hidden) + b2).reshape(batch, 1, 1, channels)
        y = y + (1 if m == 0 or 2 * m == width else 2) * (wave * new).real
    return y


def gelu(x: np.ndarray) -> np.ndarray:
    """By the hyperbolic tangent, as JAX has it."""
    return x / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
