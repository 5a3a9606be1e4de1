"""The maps of layers, in NumPy and float64: loops that follow the definition, and nothing else."""

import functools
import itertools
from typing import Any

import equinox as eqx
import numpy as np

from .layers import (
    DuckConv,
    DuckEmbedding,
    DuckLinear,
    PeriodicConv,
    ScaledLinear,
)

# The names that NumPy has for ways of padding.
_PADDING = {
    "ZEROS": "constant",
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
    y = W @ x.reshape(-1) + _bias(layer)
    return y.reshape(()) if layer.out_features == "scalar" else y


@output.register(ScaledLinear)
def _(layer: Any, W: np.ndarray, at: np.ndarray, x: np.ndarray, gain: np.ndarray) -> np.ndarray:
    return 0.5 * gain * (W @ x + _bias(layer))


@output.register(DuckLinear)
def _(layer: Any, W: np.ndarray, at: np.ndarray, x: np.ndarray) -> np.ndarray:
    return x @ W.T + _bias(layer)


@output.register(eqx.nn.Conv)
def _(layer: Any, W: np.ndarray, at: np.ndarray, x: np.ndarray) -> np.ndarray:
    return convolution(layer, W, x)


@output.register(PeriodicConv)
def _(layer: Any, W: np.ndarray, at: np.ndarray, x: np.ndarray) -> np.ndarray:
    periodic = [[*row[-1:] / 2, *row, *row[:1] / 2] for row in x]
    return convolution(layer, W, np.array(periodic))


@output.register(DuckConv)
def _(layer: Any, W: np.ndarray, at: np.ndarray, x: np.ndarray) -> np.ndarray:
    # (3, 1) kernels over a batch: as many rows as before, one more at either end.
    kernel = W.reshape(layer.out_channels, layer.in_channels, 3)
    xp = np.pad(x, [(0, 0), (0, 0), (1, 1), (0, 0)])
    shifted = [xp[:, :, k : k + x.shape[2]] for k in range(3)]
    return sum(np.einsum("oc,nchw->nohw", kernel[:, :, k], shifted[k]) for k in range(3))


@output.register(eqx.nn.ConvTranspose)
def _(layer: Any, W: np.ndarray, at: np.ndarray, x: np.ndarray) -> np.ndarray:
    return transposed_convolution(layer, W, x)


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


@output.register(eqx.nn.Embedding)
def _(layer: Any, W: np.ndarray, at: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Column `i` of `W` for every id `i`, in an axis behind those of the ids."""
    return W.T[ids]


@output.register(DuckEmbedding)
def _(layer: Any, W: np.ndarray, at: np.ndarray, ids: np.ndarray) -> np.ndarray:
    return 2 * W.T[ids]


@output.register(eqx.nn.GRUCell)
def _(cell: Any, W: np.ndarray, at: np.ndarray, x: np.ndarray, h: np.ndarray) -> np.ndarray:
    """Reset, update and new state, of which the reset gate acts behind the bias `bias_n`.

    `r = s(W_ir x + b_r + W_hr h)`, `z = s(W_iz x + b_z + W_hz h)`,
    `n = tanh(W_in x + b_n + r (W_hn h + bias_n))`, `h' = (1 - z) n + z h`.
    """
    of_input, of_state = W[:, : len(x)] @ x + _bias(cell), W[:, len(x) :] @ h
    bias_n = 0.0 if cell.bias_n is None else np.asarray(cell.bias_n)
    (i_r, i_z, i_n), (h_r, h_z, h_n) = of_input.reshape(3, -1), of_state.reshape(3, -1)
    reset, update = _sigmoid(i_r + h_r), _sigmoid(i_z + h_z)
    new = np.tanh(i_n + reset * (h_n + bias_n))
    return (1 - update) * new + update * h


@output.register(eqx.nn.LSTMCell)
def _(cell: Any, W: np.ndarray, at: np.ndarray, x: np.ndarray, state: Any) -> Any:
    """Input, forget, cell and output gates of `W_i x + W_h h + b`.

    `c' = s(f) c + s(i) tanh(g)`, `h' = s(o) tanh(c')`.
    """
    h, c = state
    z = W[:, : len(x)] @ x + W[:, len(x) :] @ h + _bias(cell)
    i, f, g, o = z.reshape(4, -1)
    c = _sigmoid(f) * c + _sigmoid(i) * np.tanh(g)
    return _sigmoid(o) * np.tanh(c), c


def _sigmoid(z: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-z))


def _bias(layer: Any) -> Any:
    return 0.0 if layer.bias is None else np.asarray(layer.bias)


def convolution(layer: Any, W: np.ndarray, x: np.ndarray) -> np.ndarray:
    """The cross-correlation that `eqx.nn.Conv` is documented to compute.

    `y[o, p] = b[o] + sum over c and k of K[o, c, k] xp[c + first(o), p * stride + k * dilation]`,
    where `xp` is the padded input, and `first(o)` the first channel of the group of output `o`.

    **Arguments:**

    - `layer`: has the settings (strides, padding) and the bias. Its kernel is not used.
    - `W`: `(out, in / groups * prod(kernel))`.
    """
    groups, n = layer.groups, len(layer.kernel_size)
    reach = [d * (k - 1) + 1 for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
    xp = np.pad(x, [(0, 0), *layer.padding], mode=_PADDING[layer.padding_mode])
    windows = np.lib.stride_tricks.sliding_window_view(xp, reach, axis=tuple(range(1, n + 1)))
    steps = [slice(None, None, step) for step in (*layer.stride, *layer.dilation)]
    windows = windows[(slice(None), *steps)]  # (in, *sizes, *kernel)
    sizes = windows.shape[1 : n + 1]
    windows = windows.reshape(groups, layer.in_channels // groups, *sizes, -1)
    kernel = W.reshape(groups, layer.out_channels // groups, layer.in_channels // groups, -1)
    return np.einsum("goik,gi...k->go...", kernel, windows).reshape(-1, *sizes) + _bias(layer)


def transposed_convolution(layer: Any, W: np.ndarray, x: np.ndarray) -> np.ndarray:
    """The transpose of the convolution that has the same settings and leads the other way.

    That one reads, for the place `p` of its output, the places `p * stride + k * dilation` of its
    padded input. So here `x[:, p]` is added to these places, by the kernel mirrored (as Equinox
    keeps it), and then the padding is cut off, or in circles added to where it was copied from.

    **Arguments:** those of `convolution`.
    """
    groups = layer.groups
    kernel = W.reshape(groups, -1, layer.in_channels // groups, *layer.kernel_size)
    inputs = x.reshape(groups, -1, *x.shape[1:])
    reach = [d * (k - 1) + 1 for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
    places, sizes = x.shape[1:], []
    before = []  # how many places of padding come first
    for axis, (n, s, r) in enumerate(zip(places, layer.stride, reach, strict=True)):
        more = layer.output_padding[axis]
        if layer.padding == "SAME":
            size = n * s - more  # of which the convolution makes n
            first = max((n - 1) * s + r - size, 0) // 2
        else:
            first, last = layer.padding[axis]
            size = (n - 1) * s + r - first - last + more
        before.append(first)
        sizes.append(size)
    y = np.zeros((groups, layer.out_channels // groups, *sizes))
    for p in itertools.product(*map(range, places)):
        for k in itertools.product(*map(range, layer.kernel_size)):
            mirrored = tuple(n - 1 - i for n, i in zip(layer.kernel_size, k, strict=True))
            to = np.array(p) * layer.stride + np.array(k) * layer.dilation - before
            if layer.padding_mode == "CIRCULAR":
                to %= sizes
            if np.all(to >= 0) and np.all(to < sizes):
                products = kernel[(..., *mirrored)] @ inputs[(..., *p)][..., None]
                y[(..., *to)] += products[..., 0]
    return y.reshape(-1, *sizes) + _bias(layer)
