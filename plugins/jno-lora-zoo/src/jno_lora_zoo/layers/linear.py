"""Linear layers: `eqx.nn.Linear` and its look-alikes."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from jno.lora import LinearLike
from jno.lora.extending import is_coded

from .._arrays import Matrix, cast_like, describe, dtype_of, is_float_array
from .._derivatives import recomputed
from .._layer_kind import Bias, Map, MatrixLayer, Update, unchanged


class LinearLayer(MatrixLayer):
    """`eqx.nn.Linear`, including `"scalar"` features, and duck types with the same attributes.

    The weight must be `(out_features, in_features)`, after any axes of a stack. Other layouts are
    not claimed.
    """

    weight_axes = "oi"

    @classmethod
    def fits(cls, leaf: Any) -> bool:
        # The nominal type comes first, because a protocol costs microseconds per node.
        if not (issubclass(type(leaf), eqx.nn.Linear) or isinstance(leaf, LinearLike)):
            return False
        weight, sizes = leaf.weight, (_size(leaf.out_features), _size(leaf.in_features))
        return is_float_array(weight) and weight.shape[-2:] == sizes and 0 not in sizes

    @classmethod
    def misfit(cls, leaf: Any) -> str | None:
        if _derives_from("NamedArray", leaf.weight) and _derives_from("Linear", leaf):
            return (
                'its weight is a NamedArray: `pip install "jno-lora[haliax]"` brings adapters for '
                "it, which are defaults once jno_lora_haliax is imported"
            )
        sizes = (_size(leaf.out_features), _size(leaf.in_features))
        if 0 in sizes:
            return f"its weight {describe(leaf.weight)} is empty"
        # The nodes that `declare_raw` took apart are leaves here.
        nodes = jax.tree.leaves(leaf.weight, is_leaf=lambda x: _derives_from("TakenApart", x))
        if any(_derives_from("TakenApart", node) for node in nodes):
            return "its raw arrays are declared: select them by their paths, such as '/raw/0$'"
        if _derives_from("AbstractUnwrappable", leaf.weight):
            name = type(leaf.weight).__name__
            return f"a {name} computes its weight: `jno_lora_arrays.declare_raw` adapts raw arrays"
        return f"its weight is {describe(leaf.weight)}, not (out_features, in_features) = {sizes}"

    @classmethod
    def inputs_of(cls, layer: Any, *args: Any, **kwargs: Any) -> Float[Array, "n in"]:
        x = jnp.asarray(args[0])
        # `eqx.nn.Linear` takes a matrix as well, whose columns are the inputs.
        x = x.T if type(layer) is eqx.nn.Linear and x.ndim == 2 else x
        return super().inputs_of(layer, jnp.atleast_1d(x))

    @classmethod
    def outputs_of(cls, layer: Any, y: Any) -> Float[Array, "n out"]:
        y = y.T if type(layer) is eqx.nn.Linear and jnp.ndim(y) == 2 else y
        return super().outputs_of(layer, jnp.atleast_1d(y))

    def computes(self, x: Any) -> bool:
        # A layer without a bias takes a matrix as well, whose columns are the inputs.
        ndim = 0 if self.base.in_features == "scalar" else 1
        return type(self.base) is eqx.nn.Linear and jnp.ndim(x) == ndim

    def reads_features(self) -> bool:
        return True

    def product(self, x: ArrayLike, before: Map = unchanged) -> Array:
        return self.base.weight @ before(self.vector(x))

    def plus(self, x: ArrayLike, U: Update) -> Array:
        if U.times is not None:
            return self.product(x) + U.times(self.vector(x))
        # If stored for the backward pass, the matrices of all layers would be as large as the
        # model.
        add = recomputed(_plus) if isinstance(U.matrix, Partial) else _plus
        weight = self.base.weight
        return add(weight if is_coded(weight) else jnp.asarray(weight), U.matrix, self.vector(x))

    def finish(self, y: Array, b: Bias | None) -> Array:
        if b is not None:
            y = y + b
        return jnp.squeeze(y) if self.base.out_features == "scalar" else y

    def vector(self, x: ArrayLike) -> Array:
        x = jnp.asarray(x)
        # Integer features would turn the adapter's arrays into integers.
        x = x.astype(jnp.result_type(x.dtype, dtype_of(self.base.weight)))
        return jnp.reshape(x, (1,)) if self.base.in_features == "scalar" else x


def _plus(weight: Any, matrix: Callable[[], Matrix], x: Array) -> Array:
    """`(W + U) x` by the matrix `U`."""
    update = cast_like(matrix(), weight)
    # A sum in half precision rounds a small update away, and a coded weight is not decoded for it.
    if weight.dtype.itemsize < 4 or is_coded(weight):
        return weight @ x + update @ x
    return (weight + update) @ x


def _derives_from(name: str, node: object) -> bool:
    # By its name, because its plugin or library may not be installed.
    return any(cls.__name__ == name for cls in type(node).__mro__)


def _size(features: int | str) -> int | str:
    return 1 if features == "scalar" else features
