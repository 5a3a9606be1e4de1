"""The base layers of the tests: each is there for one thing that can go wrong."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np


class DuckLinear(eqx.Module):
    """Somebody's own linear layer: leading batch axes, no `key` argument."""

    weight: jax.Array
    bias: jax.Array
    in_features: int = eqx.field(static=True)
    out_features: int = eqx.field(static=True)

    def __init__(self, weight, in_features, out_features):
        self.weight, self.bias = weight, jax.ShapeDtypeStruct((out_features,), jnp.float32)
        self.in_features, self.out_features = in_features, out_features

    def __call__(self, x):
        y = x @ self.weight.T
        return y + jnp.broadcast_to(self.bias, y.shape)


class ScaledLinear(eqx.nn.Linear):
    """A subclass that does more than its parent: it scales, and takes a second argument."""

    def __call__(self, x, gain, *, key=None):
        return 0.5 * gain * super().__call__(x, key=key)


class PeriodicConv(eqx.nn.Conv1d):
    """A subclass whose `__call__` pads by the physics: periodic in space, halved outside."""

    def __call__(self, x, *, key=None):
        padded = jnp.concatenate([x[:, -1:] / 2, x, x[:, :1] / 2], axis=1)
        return super().__call__(padded, key=key)


class DuckConv(eqx.Module):
    """Somebody's own convolution: channels first, a batch axis, no `key` argument."""

    weight: jax.Array
    in_channels: int = eqx.field(static=True)
    out_channels: int = eqx.field(static=True)
    kernel_size: tuple[int, ...] = eqx.field(static=True)

    def __call__(self, x):
        return jax.lax.conv_general_dilated(x, self.weight, (1, 1), "SAME")


class DuckEmbedding(eqx.Module):
    """Somebody's own table: a whole sequence at once, scaled."""

    weight: jax.Array
    num_embeddings: int = eqx.field(static=True)
    embedding_size: int = eqx.field(static=True)

    def __call__(self, ids):
        return 2.0 * self.weight[ids]


def called(layer: Any, *arguments: Any) -> Any:
    return layer(*arguments)


def mapped(layer: Any, *arguments: Any) -> Any:
    return jax.vmap(layer)(*arguments)


def with_state(layer: Any, x: Any) -> Any:
    """How a `SpectralNorm` is called, whose vectors are an output as well."""
    state = eqx.nn.State(layer)
    y, state = layer(x, state)
    return y, state.get(layer.uv_index)


@dataclasses.dataclass(frozen=True)
class Case:
    """One base layer, its inputs, the rank to adapt it with, and how it is called.

    `shapes`: a tree of the shapes of the arguments, and of arrays of indices.
    """

    name: str
    layer: Any
    shapes: Any
    rank: int
    call: Callable[..., Any] = called

    def arguments(self, dtype: Any = jnp.float32) -> tuple[Any, ...]:
        """The arguments of the layer's call."""
        rng = np.random.default_rng(17)

        def argument(shape: Any) -> Any:
            if isinstance(shape, np.ndarray):
                return jnp.asarray(shape)
            if all(isinstance(size, int) for size in shape):
                return jnp.asarray(rng.normal(size=shape), dtype)
            return tuple(map(argument, shape))

        return tuple(map(argument, self.shapes))

    def matrix(self) -> np.ndarray:
        """The `(out, in)` matrix of the layer, in float64."""
        return matrix_of(self.layer)


def matrix_of(layer: Any) -> np.ndarray:
    """The `(out, in)` matrix of a layer, or of the one in a norm, in float64."""
    if isinstance(layer, eqx.nn.WeightNorm | eqx.nn.SpectralNorm):
        layer = layer.layer
    if isinstance(layer, eqx.nn.GRUCell | eqx.nn.LSTMCell):
        weights = [np.asarray(w).astype(np.float64) for w in (layer.weight_ih, layer.weight_hh)]
        return np.concatenate(weights, axis=1)
    weight = np.asarray(layer.weight).astype(np.float64)
    if hasattr(layer, "num_embeddings"):
        return weight.T
    return weight.reshape(weight.shape[0], -1)


def with_matrix(layer: Any, matrix: np.ndarray) -> Any:
    """`layer` with that matrix as its weight, by nothing but Equinox."""
    weight = jnp.asarray(matrix.reshape(layer.weight.shape), layer.weight.dtype)
    return eqx.tree_at(lambda m: m.weight, layer, weight)


Linear, Conv1d, Conv2d = eqx.nn.Linear, eqx.nn.Conv1d, eqx.nn.Conv2d
Up1d, Up2d = eqx.nn.ConvTranspose1d, eqx.nn.ConvTranspose2d
_KEY = jax.random.key(3)


def _randomised(layer: Any) -> Any:
    """The layer with NumPy's numbers, which unlike JAX's need no compilation."""
    rng = np.random.default_rng(5)
    arrays, rest = eqx.partition(layer, lambda x: isinstance(x, jax.ShapeDtypeStruct))
    filled = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype), arrays)
    return eqx.combine(filled, rest)


def _layer(build: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    return _randomised(eqx.filter_eval_shape(lambda: build(*args, **kwargs, key=_KEY)))


def _duck(cls: Any, *shape: int, **sizes: Any) -> Any:
    return _randomised(cls(jax.ShapeDtypeStruct(shape, jnp.float32), **sizes))


# name: (how to make the layer, shapes of its arguments, rank)
_Table = dict[str, tuple[Callable[[], Any], Any, int]]

_LINEARS: _Table = {
    "plain": (lambda: _layer(Linear, 6, 5), ((6,),), 2),
    "no_bias": (lambda: _layer(Linear, 4, 7, use_bias=False), ((4,),), 3),
    "one_output": (lambda: _layer(Linear, 4, 1), ((4,),), 2),
    "scalar_input": (lambda: _layer(Linear, "scalar", 4), ((),), 2),
    "scalar_output": (lambda: _layer(Linear, 4, "scalar"), ((4,),), 2),
    "rank_above_sizes": (lambda: _layer(Linear, 4, 3), ((4,),), 9),
    "duck": (lambda: _duck(DuckLinear, 5, 6, in_features=6, out_features=5), ((2, 3, 6),), 2),
    "subclass": (lambda: _layer(ScaledLinear, 6, 5), ((6,), ()), 2),
}

# Most of these have a (5, 6) matrix, so that what is compiled for one serves the others.
_CONVS: _Table = {
    "plain": (lambda: _layer(Conv1d, 2, 5, 3), ((2, 9),), 2),
    "strided": (lambda: _layer(Conv2d, 1, 5, (3, 2), stride=(2, 1), padding=1), ((1, 7, 6),), 2),
    "volume": (lambda: _layer(eqx.nn.Conv, 3, 3, 5, (1, 2, 1)), ((3, 2, 4, 3),), 2),
    "asymmetric": (
        lambda: _layer(
            Conv2d, 2, 5, (1, 3), stride=(1, 2), padding=((1, 0), (2, 1)), use_bias=False
        ),
        ((2, 4, 7),),
        2,
    ),
    "circular": (
        lambda: _layer(
            Conv1d, 4, 6, 3, stride=2, dilation=2, padding=2, groups=2, padding_mode="CIRCULAR"
        ),
        ((4, 9),),
        2,
    ),
    # Each group has 4 outputs (then 3): OFT's blocks of 2 fit into the groups (then do not).
    "groups": (lambda: _layer(Conv1d, 4, 8, 3, groups=2), ((4, 8),), 2),
    "groups_straddled": (lambda: _layer(Conv2d, 4, 6, (3, 1), groups=2), ((4, 4, 3),), 2),
    "depthwise": (lambda: _layer(Conv1d, 4, 4, 3, groups=4, use_bias=False), ((4, 8),), 3),
    "pointwise": (lambda: _layer(Conv2d, 6, 5, 1), ((6, 4, 3),), 8),
    "subclass": (lambda: _layer(PeriodicConv, 2, 5, 3), ((2, 9),), 2),
    "duck": (
        lambda: _duck(DuckConv, 5, 2, 3, 1, in_channels=2, out_channels=5, kernel_size=(3, 1)),
        ((2, 2, 6, 5),),
        2,
    ),
}

_CONV_TRANSPOSES: _Table = {
    "plain": (lambda: _layer(Up1d, 3, 5, 2), ((3, 4),), 2),
    # As many outputs as it can have, spread inputs, and a block of 2 across the groups of 3.
    "grouped": (
        lambda: _layer(Up2d, 4, 6, (3, 1), stride=(2, 1), padding=(1, 0), groups=2),
        ((4, 3, 2),),
        2,
    ),
    "output_padding": (
        lambda: _layer(
            Up1d, 2, 5, 3, stride=3, padding=((2, 1),), output_padding=2, dilation=2, use_bias=False
        ),
        ((2, 4),),
        2,
    ),
    "circular": (
        lambda: _layer(Up1d, 2, 5, 3, stride=2, padding="SAME", padding_mode="CIRCULAR"),
        ((2, 4),),
        2,
    ),
    "depthwise": (lambda: _layer(Up1d, 4, 4, 3, groups=4, use_bias=False), ((4, 4),), 3),
    "volume": (
        lambda: _layer(eqx.nn.ConvTranspose, 3, 3, 5, (1, 2, 1), stride=(2, 1, 1)),
        ((3, 2, 2, 1),),
        2,
    ),
}


def _weight_norm(build: Callable[..., Any], *args: Any, axis: int | None = 0) -> Any:
    return _layer(lambda key: eqx.nn.WeightNorm(build(*args, key=key), axis=axis))


def _spectral_norm(build: Callable[..., Any], *args: Any, inference: bool = False) -> Any:
    def make(key: Any) -> Any:
        layer = build(*args, key=key)
        return eqx.nn.SpectralNorm(layer, "weight", 2, inference=inference, key=key)

    return _layer(make)


# Their own arrays (the magnitudes, the vectors of the power iteration) are at random as well, as
# if the layer inside had been trained since the norm was put around it.
_NORMS: _Table = {
    "rows_linear": (lambda: _weight_norm(Linear, 6, 5), ((6,),), 2),
    "rows_conv_transpose": (lambda: _weight_norm(Up1d, 3, 5, 2), ((3, 4),), 2),
    "whole_linear": (lambda: _weight_norm(Linear, 4, 3, axis=None), ((4,),), 2),
    "spectral_linear": (lambda: _spectral_norm(Linear, 6, 5), ((6,),), 2),
    "spectral_conv": (lambda: _spectral_norm(Conv1d, 2, 5, 3), ((2, 6),), 2),
    "spectral_at_inference": (lambda: _spectral_norm(Linear, 6, 5, inference=True), ((6,),), 2),
}

# LoKr's and OFT's blocks divide neither the embeddings nor their size. Repeated ids add up their
# gradients, and negative ones count from the end.
_EMBEDDINGS: _Table = {
    "batch": (lambda: _layer(eqx.nn.Embedding, 7, 5), (np.array([1, 6, 6, -2, 0]),), 3),
    "duck": (
        lambda: _duck(DuckEmbedding, 7, 5, num_embeddings=7, embedding_size=5),
        (np.array([[0, 3], [3, -1]]),),
        3,
    ),
}

# The states of an LSTM are a pair.
_CELLS: _Table = {
    "gru": (lambda: _layer(eqx.nn.GRUCell, 3, 2), ((3,), (2,)), 4),
    "lstm": (lambda: _layer(eqx.nn.LSTMCell, 3, 2), ((3,), ((2,), (2,))), 4),
}

# The layers of each kind, as adapters are named: "Linear", "Conv", ...
_TABLES = {
    "Linear": _LINEARS,
    "Conv": _CONVS,
    "ConvTranspose": _CONV_TRANSPOSES,
    "InNorm": _NORMS,
    "Embedding": _EMBEDDINGS,
    "Recurrent": _CELLS,
}
NAMES = {kind: tuple(table) for kind, table in _TABLES.items()}


@functools.cache
def case(kind: str, name: str) -> Case:
    """The base layer of that name, of that kind."""
    make, shapes, rank = _TABLES[kind][name]
    layer = make()
    call = with_state if isinstance(layer, eqx.nn.SpectralNorm) else called
    if type(layer) is eqx.nn.Embedding:
        call = mapped
    return Case(name, layer, shapes, rank, call)
