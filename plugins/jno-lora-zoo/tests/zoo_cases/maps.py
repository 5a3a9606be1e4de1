"""The maps of layers, in NumPy and float64: loops that follow the definition, and nothing else."""

import functools
import itertools
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import numpy as np

from .layers import DuckConv, DuckLinear, PeriodicConv, ScaledLinear

# The names that NumPy has for ways of padding.
_PADDING = {
    "ZEROS": "constant",
    "REFLECT": "reflect",
    "REPLICATE": "edge",
    "CIRCULAR": "wrap",
}


@functools.singledispatch
def output(layer: Any, W: np.ndarray, at: np.ndarray, *arguments: Any) -> Any:
    """The output of `layer` with the `(out, in)` matrix `W` as its weight.

    **Arguments:**

    - `layer`: its settings and its other arrays are used, its weight is not.
    - `at`: the matrix where derivatives are taken. Values that the layer's own derivative
        takes for constant are computed from it.
    """
    raise NotImplementedError(type(layer).__name__)


@output.register(eqx.nn.Linear)
def _(layer: Any, W: np.ndarray, at: np.ndarray, x: np.ndarray) -> np.ndarray:
    y = linear(W, _bias(layer), x.reshape(-1))
    return y.reshape(()) if layer.out_features == "scalar" else y


@output.register(ScaledLinear)
def _(layer: Any, W: np.ndarray, at: np.ndarray, x: np.ndarray, gain: np.ndarray) -> np.ndarray:
    return 0.5 * gain * linear(W, _bias(layer), x)


@output.register(DuckLinear)
def _(layer: Any, W: np.ndarray, at: np.ndarray, x: np.ndarray) -> np.ndarray:
    rows = [linear(W, _bias(layer), row) for row in x.reshape(-1, x.shape[-1])]
    return np.reshape(rows, (*x.shape[:-1], -1))


@output.register(eqx.nn.Conv)
def _(layer: Any, W: np.ndarray, at: np.ndarray, x: np.ndarray) -> np.ndarray:
    return convolution(layer, W, _bias(layer), x)


@output.register(PeriodicConv)
def _(layer: Any, W: np.ndarray, at: np.ndarray, x: np.ndarray) -> np.ndarray:
    periodic = [[*row[-1:] / 2, *row, *row[:1] / 2] for row in x]
    return convolution(layer, W, _bias(layer), np.array(periodic))


@output.register(DuckConv)
def _(layer: Any, W: np.ndarray, at: np.ndarray, x: np.ndarray) -> np.ndarray:
    # (3, 1) kernels over a batch: as many rows as before, one more at either end.
    kernel = W.reshape(layer.out_channels, layer.in_channels, 3)
    xp = np.pad(x, [(0, 0), (0, 0), (1, 1), (0, 0)])
    shifted = [xp[:, :, k : k + x.shape[2]] for k in range(3)]
    return sum(np.einsum("oc,nchw->nohw", kernel[:, :, k], shifted[k]) for k in range(3))


@output.register(eqx.nn.ConvTranspose)
def _(layer: Any, W: np.ndarray, at: np.ndarray, x: np.ndarray) -> np.ndarray:
    return transposed_convolution(layer, W, _bias(layer), x)


@output.register(eqx.nn.WeightNorm)
def _(norm: Any, W: np.ndarray, at: np.ndarray, x: np.ndarray) -> np.ndarray:
    """`g v / ||v||`, row by row or (without an axis) as a whole."""
    squares = np.sum(W**2, axis=1, keepdims=True) if norm.axis == 0 else np.sum(W**2)
    weight = np.asarray(norm.g).reshape(-1, 1) * W / np.sqrt(squares)
    return output(norm.layer, weight, weight, x)


@output.register(eqx.nn.SpectralNorm)
def _(norm: Any, W: np.ndarray, at: np.ndarray, x: np.ndarray) -> Any:
    """`W / (u^T W v)`, and the vectors `u` and `v`, which are constant for derivatives."""
    u, v = map(np.asarray, norm.uv_index.init)
    for _ in range(0 if norm.inference else norm.num_power_iterations):
        u = at @ v / np.linalg.norm(at @ v)
        v = at.T @ u / np.linalg.norm(at.T @ u)
    weight = W / (u @ W @ v)
    return output(norm.layer, weight, weight, x), (u, v)


def _bias(layer: Any) -> np.ndarray | None:
    return None if layer.bias is None else np.asarray(layer.bias)


def linear(W: np.ndarray, bias: np.ndarray | None, x: np.ndarray) -> np.ndarray:
    """`y_o = sum_i W_oi x_i + b_o`."""
    y = np.array([sum(W[o, i] * x[i] for i in range(W.shape[1])) for o in range(W.shape[0])])
    return y if bias is None else y + bias


def convolution(layer: Any, W: np.ndarray, bias: np.ndarray | None, x: np.ndarray) -> np.ndarray:
    """The cross-correlation that `eqx.nn.Conv` is documented to compute.

    `y[o, p] = b[o] + sum over c and k of K[o, c, k] xp[c + first(o), p * stride + k * dilation]`,
    where `xp` is the padded input, and `first(o)` the first channel of the group of output `o`.

    **Arguments:**

    - `layer`: has the settings (strides, padding), of its arrays none is used.
    - `W`: `(out, in / groups * prod(kernel))`.
    """
    kernel = W.reshape(layer.out_channels, layer.in_channels // layer.groups, *layer.kernel_size)
    reach = [d * (k - 1) + 1 for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
    xp = np.pad(x, [(0, 0), *_padding(layer, x, reach)], mode=_PADDING[layer.padding_mode])
    sizes = [(n - r) // s + 1 for n, r, s in zip(xp.shape[1:], reach, layer.stride, strict=True)]
    y = np.zeros((layer.out_channels, *sizes))
    for o in range(layer.out_channels):
        channels = _inputs_of(layer, o)
        for place in itertools.product(*map(range, sizes)):
            window = tuple(
                slice(p * s, p * s + r, d)
                for p, s, r, d in zip(place, layer.stride, reach, layer.dilation, strict=True)
            )
            y[(o, *place)] = np.sum(kernel[o] * xp[(channels, *window)])
    return y if bias is None else y + bias.reshape(-1, *[1] * len(sizes))


def _padding(layer: Any, x: np.ndarray, reach: list[int]) -> Sequence[tuple[int, int]]:
    """How many places are added before and after each axis."""
    if layer.padding == "VALID":
        return [(0, 0)] * len(reach)
    if not isinstance(layer.padding, str):
        return layer.padding
    # As many outputs as inputs (over the stride).
    totals = [
        max((-(-n // s) - 1) * s + r - n, 0)
        for n, s, r in zip(x.shape[1:], layer.stride, reach, strict=True)
    ]
    return [_halves(layer, total) for total in totals]


def transposed_convolution(
    layer: Any, W: np.ndarray, bias: np.ndarray | None, x: np.ndarray
) -> np.ndarray:
    """The transpose of the convolution that has the same settings and leads the other way.

    That one reads, for the place `p` of its output, the places `p * stride + k * dilation` of its
    padded input. So here `x[:, p]` is added to these places, by the kernel mirrored (as Equinox
    keeps it), and then the padding is cut off, or in circles added to where it was copied from.

    **Arguments:** those of `convolution`.
    """
    kernel = W.reshape(layer.out_channels, layer.in_channels // layer.groups, *layer.kernel_size)
    reach = [d * (k - 1) + 1 for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
    places, sizes = x.shape[1:], []
    before = []  # how many places of padding come first
    for axis, (n, s, r) in enumerate(zip(places, layer.stride, reach, strict=True)):
        more = layer.output_padding[axis]
        if layer.padding in ("SAME", "SAME_LOWER"):
            size = n * s - more  # of which the convolution makes n
            first, _ = _halves(layer, max((n - 1) * s + r - size, 0))
        else:
            first, last = (0, 0) if layer.padding == "VALID" else layer.padding[axis]
            size = (n - 1) * s + r - first - last + more
        before.append(first)
        sizes.append(size)
    y = np.zeros((layer.out_channels, *sizes))
    for o in range(layer.out_channels):
        inputs = x[_inputs_of(layer, o)]
        for p in itertools.product(*map(range, places)):
            for k in itertools.product(*map(range, layer.kernel_size)):
                mirrored = tuple(n - 1 - i for n, i in zip(layer.kernel_size, k, strict=True))
                to = np.array(p) * layer.stride + np.array(k) * layer.dilation - before
                if layer.padding_mode == "CIRCULAR":
                    to %= sizes
                if np.all(to >= 0) and np.all(to < sizes):
                    y[(o, *to)] += np.sum(kernel[(o, slice(None), *mirrored)] * inputs[(..., *p)])
    return y if bias is None else y + bias.reshape(-1, *[1] * len(sizes))


def _inputs_of(layer: Any, o: int) -> slice:
    """The channels that output `o` of a grouped convolution reads."""
    inputs = layer.in_channels // layer.groups
    first = o // (layer.out_channels // layer.groups) * inputs
    return slice(first, first + inputs)


def _halves(layer: Any, total: int) -> tuple[int, int]:
    """Padding before and after, of which an odd place is the last one, or the first."""
    less = total // 2
    return (total - less, less) if layer.padding == "SAME_LOWER" else (less, total - less)
