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


@dataclasses.dataclass(frozen=True)
class Case:
    """One base layer, its inputs, and the rank to adapt it with."""

    name: str
    layer: Any
    shapes: tuple[tuple[int, ...], ...]
    rank: int

    def arguments(self, dtype: Any = jnp.float32) -> tuple[jax.Array, ...]:
        """The arguments of the layer's call."""
        rng = np.random.default_rng(17)
        return tuple(jnp.asarray(rng.normal(size=shape), dtype) for shape in self.shapes)

    def matrix(self) -> np.ndarray:
        """The `(out, in)` matrix of the layer, in float64."""
        return matrix_of(self.layer)


def matrix_of(layer: Any) -> np.ndarray:
    """The `(out, in)` matrix of a layer, or of the one in a norm, in float64."""
    if isinstance(layer, eqx.nn.WeightNorm | eqx.nn.SpectralNorm):
        layer = layer.layer
    weight = np.asarray(layer.weight).astype(np.float64)
    return weight.reshape(weight.shape[0], -1)


def with_matrix(layer: Any, matrix: np.ndarray) -> Any:
    """`layer` with that matrix as its weight, by nothing but Equinox."""
    weight = jnp.asarray(matrix.reshape(layer.weight.shape), layer.weight.dtype)
    return eqx.tree_at(lambda m: m.weight, layer, weight)


Linear, Conv1d, Conv2d, Conv3d = eqx.nn.Linear, eqx.nn.Conv1d, eqx.nn.Conv2d, eqx.nn.Conv3d
Up1d, Up2d, Up3d = eqx.nn.ConvTranspose1d, eqx.nn.ConvTranspose2d, eqx.nn.ConvTranspose3d
_KEY = jax.random.key(3)


def _randomised(layer: Any) -> Any:
    """The layer with NumPy's numbers, which unlike JAX's need no compilation."""
    rng = np.random.default_rng(5)
    arrays, rest = eqx.partition(layer, lambda x: isinstance(x, jax.ShapeDtypeStruct))
    filled = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype), arrays)
    return eqx.combine(filled, rest)


def _layer(build: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    return _randomised(eqx.filter_eval_shape(lambda: build(*args, **kwargs, key=_KEY)))


def _duck_linear() -> Any:
    weight, bias = (
        jax.ShapeDtypeStruct((5, 6), jnp.float32),
        jax.ShapeDtypeStruct((5,), jnp.float32),
    )
    return _randomised(DuckLinear(weight, bias, 6, 5))


def _duck_conv() -> Any:
    return _randomised(DuckConv(jax.ShapeDtypeStruct((5, 2, 3, 1), jnp.float32), 2, 5, (3, 1)))


# name: (how to make the layer, shapes of its arguments, rank)
_Table = dict[str, tuple[Callable[[], Any], tuple[tuple[int, ...], ...], int]]

_LINEARS: _Table = {
    "plain": (lambda: _layer(Linear, 6, 5), ((6,),), 2),
    "no_bias": (lambda: _layer(Linear, 4, 7, use_bias=False), ((4,),), 3),
    "one_input": (lambda: _layer(Linear, 1, 4), ((1,),), 2),
    "one_output": (lambda: _layer(Linear, 4, 1), ((4,),), 2),
    "scalar_input": (lambda: _layer(Linear, "scalar", 4), ((),), 2),
    "scalar_output": (lambda: _layer(Linear, 4, "scalar"), ((4,),), 2),
    "scalars": (lambda: _layer(Linear, "scalar", "scalar", use_bias=False), ((),), 1),
    "rank_above_sizes": (lambda: _layer(Linear, 4, 3), ((4,),), 9),
    "duck": (_duck_linear, ((2, 3, 6),), 2),
    "subclass": (lambda: _layer(ScaledLinear, 6, 5), ((6,), ()), 2),
}

# Most of these have a (5, 6) matrix, so that what is compiled for one serves the others.
_CONVS: _Table = {
    "plain": (lambda: _layer(Conv1d, 2, 5, 3), ((2, 9),), 2),
    "strided": (lambda: _layer(Conv2d, 1, 5, (3, 2), stride=(2, 1), padding=1), ((1, 7, 6),), 2),
    "volume": (lambda: _layer(Conv3d, 3, 5, (1, 2, 1)), ((3, 2, 4, 3),), 2),
    "dilated": (lambda: _layer(Conv1d, 2, 5, 3, dilation=2, padding="SAME"), ((2, 9),), 2),
    "asymmetric": (
        lambda: _layer(
            Conv2d, 2, 5, (1, 3), stride=(1, 2), padding=((1, 0), (2, 1)), use_bias=False
        ),
        ((2, 4, 7),),
        2,
    ),
    "same_lower": (lambda: _layer(Conv1d, 3, 5, 2, padding="SAME_LOWER"), ((3, 9),), 2),
    "valid": (lambda: _layer(Conv2d, 1, 5, (2, 3), padding="VALID"), ((1, 6, 5),), 2),
    "reflect": (
        lambda: _layer(Conv1d, 2, 5, 3, padding=2, padding_mode="REFLECT"),
        ((2, 9),),
        2,
    ),
    "replicate": (
        lambda: _layer(Conv2d, 1, 5, (2, 3), padding="SAME", padding_mode="REPLICATE"),
        ((1, 5, 6),),
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
    "generic": (lambda: _layer(eqx.nn.Conv, 1, 3, 5, 2), ((3, 6),), 2),
    "subclass": (lambda: _layer(PeriodicConv, 2, 5, 3), ((2, 9),), 2),
    "duck": (_duck_conv, ((2, 2, 6, 5),), 2),
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
    "dilated": (lambda: _layer(Up2d, 1, 5, (2, 3), dilation=(2, 1)), ((1, 3, 4),), 2),
    "same": (lambda: _layer(Up1d, 2, 5, 3, stride=2, padding="SAME"), ((2, 4),), 2),
    "same_lower": (lambda: _layer(Up1d, 3, 5, 4, padding="SAME_LOWER"), ((3, 4),), 2),
    # With a stride beyond the kernel there are outputs that no input reaches.
    "sparse": (lambda: _layer(Up1d, 3, 5, 2, stride=4, padding="SAME"), ((3, 3),), 2),
    "valid": (lambda: _layer(Up1d, 3, 5, 2, stride=2, padding="VALID"), ((3, 4),), 2),
    "circular": (
        lambda: _layer(Up1d, 2, 5, 3, stride=2, padding="SAME", padding_mode="CIRCULAR"),
        ((2, 4),),
        2,
    ),
    # Few channels for each group: 2 of 4 outputs, which is also what OFT's blocks fit into.
    "groups": (lambda: _layer(Up1d, 4, 8, 3, stride=2, groups=2), ((4, 3),), 2),
    "depthwise": (lambda: _layer(Up1d, 4, 4, 3, groups=4, use_bias=False), ((4, 4),), 3),
    "volume": (lambda: _layer(Up3d, 3, 5, (1, 2, 1), stride=(2, 1, 1)), ((3, 2, 2, 1),), 2),
    "generic": (lambda: _layer(eqx.nn.ConvTranspose, 1, 3, 5, 2, stride=2), ((3, 4),), 2),
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
    "rows_conv": (lambda: _weight_norm(Conv2d, 2, 5, (3, 1)), ((2, 4, 3),), 2),
    "rows_conv_transpose": (lambda: _weight_norm(Up1d, 3, 5, 2), ((3, 4),), 2),
    "whole_linear": (lambda: _weight_norm(Linear, 4, 3, axis=None), ((4,),), 2),
    "whole_conv": (lambda: _weight_norm(Conv1d, 2, 5, 3, axis=None), ((2, 6),), 2),
    "spectral_linear": (lambda: _spectral_norm(Linear, 6, 5), ((6,),), 2),
    "spectral_conv": (lambda: _spectral_norm(Conv1d, 2, 5, 3), ((2, 6),), 2),
    "spectral_at_inference": (lambda: _spectral_norm(Linear, 6, 5, inference=True), ((6,),), 2),
}

_TABLES = {
    "Linear": _LINEARS,
    "Conv": _CONVS,
    "ConvTranspose": _CONV_TRANSPOSES,
    "InNorm": _NORMS,
}
LINEARS, CONVS, CONV_TRANSPOSES, NORMS = map(tuple, _TABLES.values())


@functools.cache
def case(kind: str, name: str) -> Case:
    """The base layer of that name, of kind `"Linear"`, `"Conv"`, ... as adapters are named."""
    make, shapes, rank = _TABLES[kind][name]
    return Case(name, make(), shapes, rank)
