"""Views of an adapted weight, and the uses of a weight that a view supports."""

import abc
import string
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple, TypeAlias

import equinox as eqx
import jax
import numpy as np
from equinox import AbstractVar
from jax import lax
from jax.sharding import PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import Array, PyTree


class DeclinedError(Exception):
    """A view or a rule needs the merged weight; with `is_choice`, only because it is cheaper."""

    def __init__(self, reason: str, is_choice: bool = False):
        super().__init__(reason)
        self.reason, self.is_choice = reason, is_choice


class DotAxes(NamedTuple):
    """The axes of an operand of `dot_general` that are summed, and the axes in batch."""

    summed: Sequence[int]
    batch: Sequence[int]

    def free(self, ndim: int) -> list[int]:
        return [axis for axis in range(ndim) if axis not in (*self.summed, *self.batch)]


class Dot(NamedTuple):
    """`dot_general` of `x` and a weight, which is the left operand if `weight_first`."""

    x: Array
    x_axes: DotAxes
    weight_axes: DotAxes
    weight_first: bool
    precision: lax.PrecisionLike
    out: jax.ShapeDtypeStruct

    def applied_to(self, weight: Array) -> Array:
        """The product, with an array instead of the weight."""
        left, right, axes = self.x, weight, (self.x_axes, self.weight_axes)
        if self.weight_first:
            left, right, axes = right, left, axes[::-1]
        numbers = (axes[0].summed, axes[1].summed), (axes[0].batch, axes[1].batch)
        dtype = self.out.dtype
        return lax.dot_general(left, right, numbers, self.precision, preferred_element_type=dtype)

    def names(self, weight_names: str) -> tuple[str, str]:
        """Names for the axes of `x` and of the result, given the names of the weight's axes."""
        x_names = list(string.ascii_uppercase[: self.x.ndim])
        for x_axes, weight_axes in zip(self.x_axes, self.weight_axes, strict=True):
            for x_axis, weight_axis in zip(x_axes, weight_axes, strict=True):
                x_names[x_axis] = weight_names[weight_axis]
        batch = [weight_names[axis] for axis in self.weight_axes.batch]
        free_of_x = [x_names[axis] for axis in self.x_axes.free(self.x.ndim)]
        free_of_weight = [weight_names[axis] for axis in self.weight_axes.free(len(weight_names))]
        free = free_of_weight + free_of_x if self.weight_first else free_of_x + free_of_weight
        return "".join(x_names), "".join(batch + free)


_CONV_PARAMS = (
    *("window_strides", "padding", "lhs_dilation", "rhs_dilation"),
    *("dimension_numbers", "feature_group_count", "precision"),
)


class Conv(NamedTuple):
    """`conv_general_dilated` of an array and a kernel, by the parameters of that operation."""

    x: Array
    params: dict[str, Any]
    out: jax.ShapeDtypeStruct

    @property
    def kernel_axes(self) -> tuple[int, ...]:
        """The axes of the kernel's outputs, of its inputs, and of its places."""
        return self.params["dimension_numbers"].rhs_spec

    @property
    def in_channel(self) -> int:
        """The axis of the channels of `x`."""
        return self.params["dimension_numbers"].lhs_spec[1]

    @property
    def out_channel(self) -> int:
        """The axis of the channels of the result."""
        return self.params["dimension_numbers"].out_spec[1]

    @property
    def groups(self) -> int:
        return self.params["feature_group_count"]

    def applied_to(self, x: Array, kernel: Array, dtype: DTypeLike) -> Array:
        params = {name: self.params[name] for name in _CONV_PARAMS}
        return lax.conv_general_dilated(x, kernel, **params, preferred_element_type=dtype)


class Ragged(NamedTuple):
    """`ragged_dot` of rows, each in a group, with a matrix for each group."""

    x: Array
    sizes: Array
    precision: lax.PrecisionLike
    out: jax.ShapeDtypeStruct

    def product(self, x: Array, matrices: Array) -> Array:
        dtype = self.out.dtype
        return lax.ragged_dot(x, matrices, self.sizes, self.precision, preferred_element_type=dtype)


class Lookup(NamedTuple):
    """`gather` of whole slices at places along some axes.

    - `axes`: the axes that are looked up, which the result does not have.
    - `places`: an array of indices for each of these axes, none out of bounds.
    - `at`: the positions of the axes of the indices in the result, in their order.
    - `in_bounds`: which of the indices were in bounds; `None` if all count as in bounds.
    - `gather`: the operation itself, for an array of the weight's shape.
    """

    axes: tuple[int, ...]
    places: tuple[Array, ...]
    at: tuple[int, ...]
    in_bounds: Array | None
    gather: Callable[[Array], Array]
    out: jax.ShapeDtypeStruct

    def free_axes(self, ndim: int) -> list[int]:
        return [axis for axis in range(ndim) if axis not in self.axes]

    def result_axes(self, ndim: int) -> list[int | None]:
        """The axis of the weight for each axis of the result, or `None` for an axis of indices."""
        free_axes = iter(self.free_axes(ndim))
        return [None if n in self.at else next(free_axes) for n in range(len(self.out.shape))]


class View(eqx.Module):
    """An adapted weight as a function reads it: its axes moved, joined, cut, or in another dtype.

    Every operation returns a view (a product returns values), or raises `DeclinedError`. Undefined
    operations raise it, too.
    """

    # The class of the adapter, for reports.
    name: AbstractVar[str]
    # Whether the view only watches, so that rules may look into what they must not change.
    only_watches: ClassVar[bool] = False

    @property
    @abc.abstractmethod
    def shape(self) -> tuple[int, ...]:
        """The sizes of the axes of the weight, as this view sees it."""

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @abc.abstractmethod
    def dense(self) -> Array:
        """The merged weight, with the axes and dtype of this view."""

    @abc.abstractmethod
    def transposed(self, order: Sequence[int]) -> "View":
        """With the axes in another order."""

    @abc.abstractmethod
    def reshaped(self, shape: Sequence[int]) -> "Result":
        """With axes joined or split, or with more or fewer axes of size one."""

    @abc.abstractmethod
    def cast(self, dtype: np.dtype) -> "View":
        """In another floating dtype."""

    def constrained(self, constrain: Callable[[Array], Array]) -> "View":
        """With a sharding that the function asks for. By default it is left to the compiler."""
        return self

    def cut(self, axis: int, start: int | Array, size: int) -> "View":
        """`size` places of an axis, from `start` on."""
        raise DeclinedError(f"the update of a {self.name} is not a product")

    def summed(self, axes: Sequence[int]) -> "View":
        raise DeclinedError("summed over an axis")

    def padded(self, axis: int, before: int, after: int) -> "View":
        """With zeros before and after the places of an axis."""
        raise DeclinedError("joined with other arrays")

    def looked_up(self, lookup: Lookup) -> "Result":
        raise DeclinedError(
            "not a lookup, by ids, of rows of an embedding or columns of a linear layer"
        )

    def product(self, use: Dot | Conv) -> Array:
        return self.dot(use) if isinstance(use, Dot) else self.conv(use)

    @abc.abstractmethod
    def dot(self, dot: Dot) -> Array:
        """A product with an array."""

    def conv(self, conv: Conv) -> Array:
        raise DeclinedError(f"a convolution by the kernel of a {self.name} merges it")

    def ragged(self, ragged: Ragged) -> Array:
        raise DeclinedError(f"the update of a {self.name} is not a product")

    @abc.abstractmethod
    def scanned(self) -> tuple[PyTree, Callable[[PyTree], "View"]]:
        """For a scan over the first axis: arrays to scan over, and the view of their slices."""

    def specs(self, spec: PartitionSpec) -> "View | None":
        """The sharding of each array of the view, given the view's sharding, or `None`."""
        # By default an adapter is whole on every device.
        return None if any(spec) else jax.tree.map(lambda _: PartitionSpec(), self)


# An operation returns values in place of a view if no use of them needs the adapter.
Result: TypeAlias = View | Array
