"""`e3nn_jax.equinox.Linear`, with a matrix of channels for each path between two equal irreps."""

import math
from collections.abc import Callable, Iterator, Mapping
from types import ModuleType
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jno_lora_zoo import MatricesLayer, cast_like, describe, is_float_array, linear_layer

from ._classes import E3nnLinear
from ._host import beside, on_host


class Path(NamedTuple):
    """A path of the layer, from the channels of one irrep to channels of the same irrep.

    - `name`: of its matrix, such as `1o_2`: the irrep, and its place among the outputs.
    - `weight`: the key of its array in the layer, whose last axes are `(in, out)`.
    - `bias`: the key of the bias of its output, if there is one.
    - `factor`: the layer multiplies the array by this number.
    """

    name: str
    weight: str
    bias: str | None
    factor: float
    place_in: int
    place_out: int


class E3nnLayer(MatricesLayer):
    """`e3nn_jax.equinox.Linear`, with one matrix `(mul_out, mul_in)` for each path of irreps.

    An update mixes the channels of one irrep, but not the components of an irrep, so by Schur's
    lemma every matrix keeps the equivariance. The matrix is the array times the path's weight,
    about `1/sqrt(mul_in)`, so that it is the linear map that the layer applies. Biases, which only
    scalars have, do not change unless the method adapts biases.

    In a layer with indexed weights (a set of matrices for each species), the matrix of a path is
    the mean over the species. Its change is added for every species, so that all species share the
    adapter. `E3nnPerSpeciesLayer` has an adapter for each species. In a layer with mixed weights,
    the products of the weights and the channels are the inputs, and a matrix is
    `(mul_out, weights * mul_in)`.
    """

    @classmethod
    def fits(cls, leaf: object) -> bool:
        if not isinstance(leaf, E3nnLinear) or leaf.linear_type not in cls.linear_types():
            return False
        arrays = [leaf._weights[path.weight] for path in paths(leaf)]
        stacks = {array.ndim - _ndim(leaf) for array in arrays}
        return bool(arrays) and all(map(is_float_array, arrays)) and len(stacks) == 1

    @classmethod
    def linear_types(cls) -> tuple[str, ...]:
        """The forms of the layer (`linear_type`) that this kind takes."""
        return ("vanilla", "indexed", "mixed")

    @classmethod
    def misfit(cls, leaf: object) -> str | None:
        if not isinstance(leaf, E3nnLinear):
            return None
        if leaf.linear_type == "mixed_per_channel":
            return "its weights differ from channel to channel (`mixed_per_channel`)"
        if not any(paths(leaf)):
            return f"no irrep is among its inputs {leaf.irreps_in} and outputs {leaf.irreps_out}"
        arrays = {name: describe(array) for name, array in leaf._weights.items()}
        return f"its weights are not floating arrays with the same axes of a stack, but {arrays}"

    @classmethod
    def stack_ndim(cls, leaf: Any) -> int:
        return leaf._weights[next(paths(leaf)).weight].ndim - _ndim(leaf)

    @classmethod
    def linear_layers(cls, layer: E3nnLinear) -> dict[str, eqx.nn.Linear]:
        linears: dict[str, eqx.nn.Linear] = {}
        for path in paths(layer):
            bias = jnp.asarray(layer._weights[path.bias]) if path.bias else None
            W = cls._matrix(layer, path, layer._weights[path.weight])
            linears[path.name] = linear_layer(W, bias)
        return linears

    @classmethod
    def _matrix(cls, layer: E3nnLinear, path: Path, array: Array) -> Float[Array, "*modes out in"]:
        w = on_host(array)
        if layer.linear_type == "indexed":
            w = w.mean(axis=0)
        return beside(path.factor * w.reshape(-1, w.shape[-1]).T, array)

    @classmethod
    def with_linear_layers(
        cls, base: E3nnLinear, linears: Mapping[str, eqx.nn.Linear]
    ) -> eqx.Module:
        new: dict[str, Array] = {}
        for path in paths(base):
            linear, array = linears[path.name], base._weights[path.weight]
            # Add the change, so that the array stays exactly the same without a change.
            matrix, wide = cls._matrix(base, path, array), on_host(array)
            change = (on_host(linear.weight) - on_host(matrix)).swapaxes(-1, -2) / path.factor
            # A single matrix of several species has the same change for all of them.
            change = change.reshape(wide.shape) if change.size == wide.size else change[None]
            new[path.weight] = cast_like(beside(wide + change, array), array)
            if path.bias and linear.bias is not None:
                new[path.bias] = cast_like(linear.bias, base._weights[path.bias])
        return eqx.tree_at(lambda m: m._weights, base, {**base._weights, **new})

    def computes(self, *args: Any, **kwargs: Any) -> bool:
        layer = self.base
        is_plain = (type(layer).__module__, type(layer).__name__) in E3nnLinear.names
        is_vanilla = layer.linear_type == "vanilla"
        if not is_plain or layer.linear_type == "mixed" or layer.channel_in is not None:
            return False
        if len(args) != (1 if is_vanilla else 2) or kwargs or not hasattr(args[-1], "irreps"):
            return False
        x = args[-1]
        if x.irreps.regroup() != layer.irreps_in:
            return False
        dtypes = {array.dtype for array in (*layer._weights.values(), x)}
        if len(dtypes) > 1 or x.dtype.itemsize < 4:
            return False
        if not is_vanilla:
            return jnp.shape(args[0]) == x.shape[:-1]
        # An output with a bias may have no path.
        biases = {name for name in layer._weights if name.startswith("b[")}
        return biases == {path.bias for path in paths(layer)} - {None}

    def call(self, products: Mapping[str, Callable[[Array], Array]], *args: Any) -> Any:
        layer, x = self.base, args[-1]
        linear, is_vanilla = layer._linear, layer.linear_type == "vanilla"
        inputs = _input_chunks(layer, x)
        # The irreps of the inputs are regrouped, so an output has at most one path.
        chunks: list[Any] = [None] * len(linear.irreps_out)
        # The matrix of all species is their mean, so only its change is added.
        plain = {} if is_vanilla else self.linear_layers(layer)
        for path in paths(layer):
            features = inputs[path.place_in]
            y = _mixed(products[path.name], features)
            chunks[path.place_out] = y if is_vanilla else y - _mixed(plain[path.name], features)
        y = e3nn().from_chunks(linear.irreps_out, chunks, x.shape[:-1], x.dtype)
        if layer.channel_out is not None:
            y = y.mul_to_axis(layer.channel_out)
        y = y.rechunk(layer.irreps_out)
        return y if is_vanilla else layer(*args) + y

    @classmethod
    def inputs_of(cls, layer: Any, *args: Any, **kwargs: Any) -> Float[Array, "n in"]:
        *weights, x = args
        inputs = _input_chunks(layer, x)
        rows: list[Array] = []
        for path in paths(layer):
            features = inputs[path.place_in]
            if layer.linear_type == "mixed":
                w = getattr(weights[0], "array", weights[0])[..., :, None, None]
                products = w * features[..., None, :, :]
                features = products.reshape(*features.shape[:-2], -1, features.shape[-1])
            rows.append(_rows(features, path, layer))
        return jnp.concatenate(rows, axis=1)

    @classmethod
    def outputs_of(cls, layer: E3nnLinear, y: Any) -> Float[Array, "n out"]:
        if layer.channel_out is not None:
            y = y.axis_to_mul()
        chunks = y.rechunk(layer._linear.irreps_out).chunks
        rows = [_rows(chunks[path.place_out], path, layer) for path in paths(layer)]
        return jnp.concatenate(rows, axis=1)

    @classmethod
    def gradient_factors(cls, layer: Any) -> dict[str, float]:
        # A change of the matrix, over the factor, is added to the array of every species, so the
        # gradient by the matrix is a sum over the species, but `matrices` of a gradient is a mean.
        count = layer.num_indexed_weights if layer.linear_type == "indexed" else 1
        return {path.name: count / path.factor**2 for path in paths(layer)}


class E3nnPerSpeciesLayer(E3nnLayer):
    """`e3nn_jax.equinox.Linear` with indexed weights, and an adapter for each index (species)."""

    @classmethod
    def linear_types(cls) -> tuple[str, ...]:
        return ("indexed",)

    @classmethod
    def misfit(cls, leaf: object) -> str | None:
        if isinstance(leaf, E3nnLinear) and leaf.linear_type != "indexed":
            return f"its weights are {leaf.linear_type}, not indexed by the species"
        return super().misfit(leaf)

    def computes(self, *args: Any, **kwargs: Any) -> bool:
        return False

    @classmethod
    def _matrix(cls, layer: E3nnLinear, path: Path, array: Array) -> Float[Array, "species out in"]:
        return beside(path.factor * on_host(array).swapaxes(-1, -2), array)


def paths(layer: Any) -> Iterator[Path]:
    """The paths of an `e3nn_jax.equinox.Linear` that have weights.

    The arrays of the layer are found by name, because they are in a dict, whose keys JAX sorts.
    """
    linear = layer._linear
    names = [(ins, _key(linear, ins)) for ins in linear.instructions if 0 not in ins.path_shape]
    biases = {ins.i_out: name for ins, name in names if ins.i_in == -1}
    for ins, name in names:
        if ins.i_in != -1:
            factor = float(ins.path_weight)
            if layer.linear_type == "mixed":
                factor *= math.sqrt(1 / layer.weights_dim) ** layer.gradient_normalization
            bias = biases.get(ins.i_out) if layer.linear_type == "vanilla" else None
            ir = linear.irreps_out[ins.i_out].ir
            yield Path(f"{ir}_{ins.i_out}", name, bias, factor, ins.i_in, ins.i_out)


def _key(linear: Any, ins: Any) -> str:
    outputs = linear.irreps_out[ins.i_out]
    if ins.i_in == -1:
        return f"b[{ins.i_out}] {outputs}"
    return f"w[{ins.i_in},{ins.i_out}] {linear.irreps_in[ins.i_in]},{outputs}"


def _ndim(layer: E3nnLinear) -> int:
    """The number of axes of the weights of one layer."""
    return 2 if layer.linear_type == "vanilla" else 3


def _mixed(
    product: Callable[[Array], Array], features: Float[Array, "*batch in n"]
) -> Float[Array, "*batch out n"]:
    """The map of channels, applied to each component of an irrep."""
    *batch, inputs, n = features.shape
    rows = jnp.swapaxes(features, -1, -2).reshape(-1, inputs)
    return jnp.swapaxes(jax.vmap(product)(rows).reshape(*batch, n, -1), -1, -2)


def _input_chunks(layer: E3nnLinear, x: Any) -> list[Any]:
    """The channels of the inputs, `(*batch, mul, components)`, by `Path.place_in`."""
    x = e3nn().as_irreps_array(x).remove_zero_chunks().regroup()
    return x.rechunk(layer._linear.irreps_in).chunks


def _rows(
    features: Float[Array, "*batch mul n"], path: Path, layer: E3nnLinear
) -> Float[Array, "rows mul"]:
    """Vectors of channels with the mean and the covariance of the channels over all directions.

    There are `2 most` rows for each input, where `most` is the largest number of components of an
    irrep of the layer. Scalars are repeated. Components of other irreps get both signs, as under
    rotations and inversions, so that their mean is zero in every frame of the data. Rows of zeros
    make the numbers of rows equal, and the other rows are scaled up for this.
    """
    irreps = layer._linear.irreps_out
    most = max(irreps[other.place_out].ir.dim for other in paths(layer))
    ir = irreps[path.place_out].ir
    rows = jnp.moveaxis(features, -1, 0)
    if ir == "0e":
        rows = jnp.repeat(rows, 2 * most, axis=0)
    else:
        rows = math.sqrt(most / ir.dim) * jnp.concatenate([rows, -rows])
        rows = jnp.pad(rows, [(0, 2 * (most - ir.dim)), *[(0, 0)] * (rows.ndim - 1)])
    return rows.reshape(-1, features.shape[-2])


def e3nn() -> ModuleType:
    """The library, imported late because that takes seconds."""
    import e3nn_jax

    return e3nn_jax
