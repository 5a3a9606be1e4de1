"""What a method may ask of the layer it adapts, whatever kind of layer that is."""

import abc
import functools
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jaxtyping import Array, Float

from jno.lora import LoRAWrapper


class MeshAxes(NamedTuple):
    """The mesh axes of a sharded weight: those of a stack, of its outputs and of its inputs."""

    stack: tuple[Any, ...]
    outputs: Any
    inputs: Any


class LayerKind(LoRAWrapper):
    """One kind of layer: its `(out, in)` matrix, and its linear map in pieces. No parameters.

    A method needs `matrix` and `with_matrix` for its law. The other operations are for its fast
    path, and only called if `is_known(base)`: on every other layer, whose `__call__` may do more
    than the kind knows of, the law's matrix is put into the base and the base is called. A kind
    that knows no layer needs none of them.

    The input `x` is what the layer takes (features, or the index of a lookup). Feature arrays have
    whatever shape suits the kind: `h` has the rank axis, `y` the output axis.
    The operations cast the adapter's arrays to the dtype of the features.
    """

    # Whether `low_rank` merges `B A` into the weight. A method with more factors than two then does
    # best to multiply them into `A` and `B` first.
    merges_factors: ClassVar[bool] = False

    @classmethod
    def applies_to(cls, leaf: Any) -> bool:
        """Whether `leaf` is a layer of this kind, by `fits`. Never raises."""
        # Every node of a model is asked about, and `isinstance` is slow for modules.
        cls_of_leaf = type(leaf)
        if not issubclass(cls_of_leaf, eqx.Module) or issubclass(cls_of_leaf, LoRAWrapper):
            return False
        try:
            return bool(cls.fits(leaf))
        except Exception:
            # A look-alike whose attributes mean something else (arrays for sizes, a property that
            # raises) is not of this kind, and no reason to refuse the rest of the model.
            return False

    @classmethod
    @abc.abstractmethod
    def fits(cls, leaf: Any) -> bool:
        """Whether the module `leaf`, not adapted yet, is a layer of this kind."""

    @classmethod
    def why_not(cls, leaf: Any) -> str | None:
        """What keeps `leaf` from being a layer of this kind, if it looks like one. Never raises."""
        try:
            return cls.misfit(leaf)
        except Exception:
            return None

    @classmethod
    def misfit(cls, leaf: Any) -> str | None:
        """For a module that does not fit: what is wrong with it, or `None` if it is far off."""
        return None

    @classmethod
    @abc.abstractmethod
    def matrix(cls, base: eqx.Module) -> Float[Array, "out in"]:
        """The weight as an `(out, in)` matrix, in float32 at least."""

    @classmethod
    @abc.abstractmethod
    def with_matrix(cls, base: eqx.Module, matrix: Float[Array, "out in"]) -> eqx.Module:
        """`base` with that matrix as its weight, cast to the weight's own dtype."""

    @classmethod
    @abc.abstractmethod
    def mesh_axes(cls, base: eqx.Module) -> MeshAxes:
        """Over which axes of its mesh the weight is sharded."""

    @classmethod
    def fan_in(cls, W: Float[Array, "out in"]) -> int:
        """How many inputs one output sums over, which sets the variance of random factors."""
        return W.shape[1]

    @classmethod
    def is_known(cls, base: eqx.Module) -> bool:
        """Whether `base`'s exact type is one whose `__call__` the operations below reproduce."""
        return False

    def accepts(self, x: Any) -> bool:
        """Whether `x` has the shape that the operations below are written for."""
        return True

    def product(self, x: Any) -> Array:
        """`y = W x`, without the bias."""
        raise NotImplementedError

    def down(self, x: Any, A: Float[Array, "r in"]) -> Array:
        """`h = A x`: the first half of a low-rank product."""
        raise NotImplementedError

    def up(self, h: Array, B: Float[Array, "out r"]) -> Array:
        """`y = B h`: the second half of a low-rank product."""
        raise NotImplementedError

    def low_rank(
        self, x: Any, A: Float[Array, "r in"], B: Float[Array, "out r"], scaling: float
    ) -> Array:
        """`y = (W + s B A) x`: the layer's own product and a low-rank one."""
        return self.product(x) + scaling * self.up(self.down(x, A), B)

    def mix(self, h: Array, R: Float[Array, "r r"]) -> Array:
        """`R h`: a matrix on the rank axis."""
        raise NotImplementedError

    def scale_rank(self, h: Array, d: Float[Array, " r"]) -> Array:
        """`diag(d) h`: a factor for each component of the rank axis."""
        raise NotImplementedError

    def scale_output(self, y: Array, v: Float[Array, " out"]) -> Array:
        """`diag(v) y`: a factor for each output."""
        raise NotImplementedError

    def rotate_output(self, y: Array, R: Float[Array, "blocks r r"]) -> Array:
        """`blockdiag(R_1, R_2, ...) y`, cut to the outputs there are."""
        raise NotImplementedError

    def rotated_product(self, x: Any, R: Float[Array, "blocks r r"]) -> Array:
        """`y = blockdiag(R_1, R_2, ...) W x`, for orthogonal blocks."""
        return self.rotate_output(self.product(x), R)

    def rotates_output(self, block: int) -> bool:
        """Whether rotating outputs in blocks of this size is the same as rotating the matrix."""
        raise NotImplementedError

    def finish(self, y: Array) -> Array:
        """Add the bias, and give the result the shape that the layer returns."""
        raise NotImplementedError

    def has_kronecker(self) -> bool:
        """Whether `kronecker` is cheaper or more precise than the product with the law's matrix."""
        return False

    def kronecker(self, x: Any, A: Float[Array, "r r"], B: Float[Array, "p q"]) -> Array:
        """`y = (A ⊗ B) x`, cut to the inputs and outputs there are."""
        raise NotImplementedError


def sharded_over(weight: Any) -> tuple[Any, ...]:
    """The mesh axes of each axis of `weight`, `None` where it is not sharded."""
    sharding = getattr(weight, "sharding", None)
    spec = tuple(sharding.spec) if isinstance(sharding, NamedSharding) else ()
    return spec + (None,) * (weight.ndim - len(spec))


def is_float_array(weight: Any) -> bool:
    """Whether `weight` is a real floating array. (`Shared` puts placeholders in its place.)"""
    return isinstance(weight, _ARRAYS) and _is_floating(weight.dtype)


_ARRAYS = (jax.Array, np.ndarray)


@functools.lru_cache(maxsize=64)
def _is_floating(dtype: Any) -> bool:
    return bool(jnp.issubdtype(dtype, jnp.floating))


def describe(weight: Any) -> str:
    """A weight in a message: its shape, and its dtype if that is what is wrong."""
    if not isinstance(weight, _ARRAYS):
        return f"a {type(weight).__name__}"
    return f"{weight.shape}" if is_float_array(weight) else f"{weight.dtype} {weight.shape}"


def dtype_of(weight: Any) -> Any:
    """The dtype that JAX has for `weight`: float32 for NumPy's float64 unless that is enabled."""
    return jax.dtypes.canonicalize_dtype(weight.dtype)


def compute_dtype(weight: Any) -> Any:
    """The dtype to compute in with `weight`: its own, or float32 if that is more."""
    dtype = dtype_of(weight)
    return jnp.dtype(jnp.float32) if dtype.itemsize < 4 else dtype


def at_least_float32(weight: Any) -> Array:
    """`weight` in its own precision, or in float32 if that is more."""
    return jnp.asarray(weight, compute_dtype(weight))


def cast_like(array: Array, weight: Any) -> Array:
    """`array` in the dtype of `weight`."""
    return array.astype(dtype_of(weight))


def scaled(y: Array, v: Array) -> Array:
    """`v * y`. In half precision, a factor within 0.4 % of 1 would be 1 before it is used."""
    wide = at_least_float32(y)
    return (wide * v.astype(wide.dtype)).astype(y.dtype)
