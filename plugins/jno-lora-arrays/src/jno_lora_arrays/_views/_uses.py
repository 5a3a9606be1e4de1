"""How a function uses a weight: in products, convolutions and lookups."""

import string
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
from jax import lax
from jaxtyping import Array


class Declined(NamedTuple):
    """The answer of a view or a rule that needs the merged weight.

    - `is_choice`: whether the factors could be used, but merging is cheaper.
    """

    reason: str
    is_choice: bool = False


def first_declined(results: Iterable[Any]) -> Declined | None:
    """The first result that is `Declined`."""
    return next((result for result in results if isinstance(result, Declined)), None)


class DotAxes(NamedTuple):
    """The axes of an operand of `dot_general` that are summed, and the axes in batch."""

    summed: Sequence[int]
    batch: Sequence[int]

    def free(self, ndim: int) -> list[int]:
        """The axes that are neither summed nor in batch."""
        return [axis for axis in range(ndim) if axis not in (*self.summed, *self.batch)]


class Dot(NamedTuple):
    """`dot_general` of a weight and an array `x`.

    - `weight_first`: whether the weight is the left operand.
    """

    x: Array
    x_axes: DotAxes
    weight_axes: DotAxes
    weight_first: bool
    precision: Any
    out: jax.ShapeDtypeStruct

    def applied_to(self, weight: Array) -> Array:
        """The product, for an array in the place of the weight."""
        operands, axes = (self.x, weight), (self.x_axes, self.weight_axes)
        if self.weight_first:
            operands, axes = operands[::-1], axes[::-1]
        numbers: Any = tuple(zip(*axes, strict=True))
        return lax.dot_general(
            *operands,
            numbers,
            precision=self.precision,
            preferred_element_type=self.out.dtype,
        )

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
    def groups(self) -> int:
        """The number of groups of channels."""
        return self.params["feature_group_count"]

    def applied_to(self, x: Array, kernel: Array, dtype: Any) -> Array:
        """The convolution of an array with a kernel, in a dtype."""
        names = ("window_strides", "padding", "lhs_dilation", "rhs_dilation", "dimension_numbers")
        return lax.conv_general_dilated(
            x,
            kernel,
            **{name: self.params[name] for name in names},
            feature_group_count=self.groups,
            precision=self.params["precision"],
            preferred_element_type=dtype,
        )


class Ragged(NamedTuple):
    """`ragged_dot` of rows, each in a group, with a matrix for each group."""

    x: Array
    sizes: Array
    precision: Any
    out: jax.ShapeDtypeStruct


class Lookup(NamedTuple):
    """`gather` of whole slices at places along some axes.

    - `axes`: the axes that are looked up, which the result lacks.
    - `places`: an array of indices for each of these axes, none out of bounds.
    - `at`: the positions of the axes of the indices in the result, in their order.
    - `in_bounds`: which of the indices were in bounds; `None` if all count as such.
    - `gather`: the operation itself, for an array of the weight's shape.
    """

    axes: tuple[int, ...]
    places: tuple[Array, ...]
    at: tuple[int, ...]
    in_bounds: Array | None
    gather: Callable[[Array], Array]
    out: jax.ShapeDtypeStruct

    def other_axes(self, ndim: int) -> list[int]:
        """The axes of the weight that are not looked up."""
        return [axis for axis in range(ndim) if axis not in self.axes]

    def result_axes(self, ndim: int) -> list[int | None]:
        """The axis of the weight for each axis of the result, or `None` for an axis of indices."""
        others = iter(self.other_axes(ndim))
        return [None if n in self.at else next(others) for n in range(len(self.out.shape))]
