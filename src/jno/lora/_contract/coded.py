"""Arrays that a layer stores in another form, such as the codes of a quantised weight."""

import abc
import functools
import math
import operator
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, TypeGuard

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from equinox import AbstractVar
from jaxtyping import Array, ArrayLike, Float, PyTree

from .._compute.precision import compute_dtype
from .._errors import WrapperError


class CodedArray(eqx.Module):
    """A frozen array in another form. It replaces a layer's array, and reads like the array.

    A subclass describes the array (`shape`, `dtype`) and computes it (`decoded`). Its leaves
    should be integers: then no filter, cast or optimiser touches them. Its fields must keep their
    meaning when the leading axes of a stack are mapped over or scanned.
    """

    # The error of merges, and of starts that change the weight: other values cannot replace it.
    refusal: ClassVar[str] = "its weight is coded, and other values have no such form."

    dtype: AbstractVar[Any]

    @property
    @abc.abstractmethod
    def code(self) -> str:
        """A short name of the form, of small letters and digits: files compare equal forms only."""

    @property
    @abc.abstractmethod
    def shape(self) -> tuple[int, ...]:
        """The shape of the array."""

    @abc.abstractmethod
    def decoded(self) -> Array:
        """The array."""

    @abc.abstractmethod
    def astype(self, dtype: Any) -> "CodedArray":
        """The same codes, for an array of another floating dtype."""

    def applied(self, function: Callable[[Array, Array], Array], x: Array) -> Array:
        """`function(W, x)` for the array `W` and a function that is linear in `x`.

        - `function`: hashable; equal functions are compiled once.
        """
        return function(self.decoded(), x)

    def row_products(self, A: Float[Array, "r in"]) -> tuple[Array, Array]:
        """`W A^T` and the squared norm of each row, for `W` as a matrix in float32 at least."""
        W = self.decoded().reshape(self.shape[0], -1)
        return row_products(W.astype(self.compute_dtype), A.astype(self.compute_dtype))

    def __getitem__(self, index: Any) -> Array:
        return self.decoded()[index]

    @property
    def compute_dtype(self) -> np.dtype:
        """The dtype to compute in: float32 or, if it has more bits, the dtype of the array."""
        return compute_dtype(self)

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """The number of entries."""
        return math.prod(self.shape)

    @property
    def T(self) -> Array:
        """The array, transposed."""
        return self.decoded().T

    def reshape(self, *shape: Any) -> Array:
        """The array in another shape."""
        return self.decoded().reshape(*shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __iter__(self) -> Iterator[Array]:
        return iter(self.decoded())

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self.decoded(), dtype)

    def __matmul__(self, x: ArrayLike) -> Array:
        return self.applied(operator.matmul, jnp.asarray(x))

    def __rmatmul__(self, x: ArrayLike) -> Array:
        return self.applied(_times_from_the_left, jnp.asarray(x))

    def __jax_array__(self) -> Array:
        return self.decoded()


def _decoded_then(array: CodedArray, name: str, *operands: Any) -> Array:
    return getattr(array.decoded(), name)(*operands)


for _name in ("add", "radd", "sub", "rsub", "mul", "rmul", "truediv", "rtruediv", "neg", "pow"):
    setattr(CodedArray, f"__{_name}__", functools.partialmethod(_decoded_then, f"__{_name}__"))


def _times_from_the_left(W: Array, x: Array) -> Array:
    return x @ W


def row_products(W: Float[Array, "out in"], A: Float[Array, "r in"]) -> tuple[Array, Array]:
    """`W A^T`, and the squared norm of each row of `W`."""
    return W @ A.T, jnp.sum(W * W, axis=1)


def is_coded(node: object) -> TypeGuard[CodedArray]:
    """Whether `node` stands for an array in another form."""
    return issubclass(type(node), CodedArray)


def with_arrays(tree: PyTree) -> PyTree:
    """`tree`, with the array in the place of each `CodedArray`."""
    return jax.tree.map(lambda x: x.decoded() if is_coded(x) else x, tree, is_leaf=is_coded)


def class_of(layer: PyTree) -> type:
    """The class of `layer`, or the class to which it adds coded weights (`stands_for`)."""
    return getattr(type(layer), "stands_for", type(layer))


def coded_size(tree: PyTree) -> int:
    """The number of entries of all arrays that `CodedArray`s in `tree` stand for."""
    return sum(x.size for x in jax.tree.leaves(tree, is_leaf=is_coded) if is_coded(x))


def refuse_coded(layer: PyTree) -> None:
    """**Raises:** `WrapperError` if other values cannot be put into an array of `layer`."""
    for leaf in jax.tree.leaves(layer, is_leaf=is_coded):
        if is_coded(leaf):
            raise WrapperError(leaf.refusal)
