"""Views of an adapted weight, as the rules see them, and descriptions of its uses."""

import abc
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
from equinox import AbstractVar
from jax.sharding import PartitionSpec
from jaxtyping import Array


class Declined(NamedTuple):
    """The answer of a view or a rule that needs the merged weight.

    - `is_choice`: whether the factors could be used, but merging is cheaper.
    """

    reason: str
    is_choice: bool = False


class Dot(NamedTuple):
    """`dot_general` of a weight and an array `x`."""

    x: Array
    of_x: tuple[Sequence[int], Sequence[int]]  # the axes of `x` that are summed, and those in batch
    of_weight: tuple[Sequence[int], Sequence[int]]
    weight_first: bool
    precision: Any
    out: jax.ShapeDtypeStruct

    def free(self) -> tuple[list[int], list[int]]:
        """The other axes of `x`, and of the weight."""
        ndim = len(self.out.shape) - len(self.of_x[1])
        of_x = [axis for axis in range(self.x.ndim) if axis not in (*self.of_x[0], *self.of_x[1])]
        taken = (*self.of_weight[0], *self.of_weight[1])
        of_weight = [a for a in range(ndim - len(of_x) + len(taken)) if a not in taken]
        return of_x, of_weight


class Conv(NamedTuple):
    """`conv_general_dilated` of an array and a kernel, by the parameters of that operation."""

    x: Array
    params: dict[str, Any]
    out: jax.ShapeDtypeStruct


class Ragged(NamedTuple):
    """`ragged_dot` of rows, each of a group, with a matrix for each group."""

    x: Array
    sizes: Array
    precision: Any
    out: jax.ShapeDtypeStruct


class Lookup(NamedTuple):
    """`gather` of whole slices at places along some axes.

    - `axes`: the axes that are looked up, which the result lacks.
    - `places`: an array of indices for each of them, none out of bounds.
    - `at`: where the axes of the indices lie in the result.
    - `is_there`: which of the indices were in bounds; `None` if all count as such.
    - `gather`: the operation itself, of an array of this shape.
    """

    axes: tuple[int, ...]
    places: tuple[Array, ...]
    at: tuple[int, ...]
    is_there: Array | None
    gather: Callable[[Array], Array]
    out: jax.ShapeDtypeStruct


class View(eqx.Module):
    """An adapted weight as a function sees it: its axes moved, joined, cut, or in another dtype.

    Every operation gives a view, or for a product the values, or `Declined`. Operations that are
    not defined are declined.
    """

    # The class of the adapter, for reports.
    name: AbstractVar[str]
    shape: AbstractVar[tuple[int, ...]]
    dtype: AbstractVar[Any]
    # Whether the view only watches, so that rules may look into what they must not change.
    only_watches: ClassVar[bool] = False

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return len(self.shape)

    @abc.abstractmethod
    def dense(self) -> Array:
        """The merged weight, as it is seen here."""

    @abc.abstractmethod
    def transposed(self, order: Sequence[int]) -> Any:
        """With the axes in another order."""

    @abc.abstractmethod
    def reshaped(self, shape: Sequence[int]) -> Any:
        """With axes joined or split, or with more or fewer axes of size one."""

    @abc.abstractmethod
    def cast(self, dtype: Any) -> Any:
        """In another floating dtype."""

    def plus(self, array: Array) -> Any:
        """With an array of this shape added."""
        return Declined("added to an array")

    def constrained(self, constrain: Callable[[Array], Array]) -> Any:
        """With a sharding that the function asks for. By default it is left to the compiler."""
        return self

    def cut(self, axis: int, start: Any, size: int) -> Any:
        """`size` places of an axis, from `start` on."""
        return Declined(f"the update of a {self.name} is not a product")

    def summed(self, axes: Sequence[int]) -> Any:
        """Summed over some axes."""
        return Declined("summed over an axis")

    def padded(self, axis: int, before: int, after: int) -> Any:
        """With zeros before and after the places of an axis."""
        return Declined("joined with other arrays")

    def looked_up(self, lookup: Lookup) -> Any:
        """The slices at some places."""
        return Declined(
            "not a lookup, by ids, of rows of an embedding or columns of a linear layer"
        )

    @abc.abstractmethod
    def dot(self, dot: Dot) -> Any:
        """A product with an array."""

    def conv(self, conv: Conv) -> Any:
        """A convolution with this kernel."""
        return Declined(f"a convolution by the kernel of a {self.name} merges it")

    def ragged(self, ragged: Ragged) -> Any:
        """A product of each row with the matrix of its group."""
        return Declined(f"the update of a {self.name} is not a product")

    @abc.abstractmethod
    def scanned(self) -> "tuple[Any, Callable[[Any], Any]] | None":
        """Arrays to scan over, and the view of their slices: for a scan over the first axis.

        `None` if the view has none.
        """

    def specs(self, spec: PartitionSpec) -> Any:
        """The sharding of each array of the view, for that of the view; `None` if it has none.

        By default an adapter is whole on every device.
        """
        return None if any(spec) else jax.tree.map(lambda _: PartitionSpec(), self)


def regrouped(old: Sequence[int], new: Sequence[int]) -> list[tuple[list[int], list[int]]] | None:
    """The smallest groups of neighbouring axes of equal sizes: how a reshape maps axes to axes.

    Axes of size one belong to no group. `None` if an array is empty.
    """
    if 0 in (*old, *new):
        return None
    left = [axis for axis, size in enumerate(old) if size != 1]
    right = [axis for axis, size in enumerate(new) if size != 1]
    groups: list[tuple[list[int], list[int]]] = []
    while left:
        before, after = [left.pop(0)], [right.pop(0)]
        m, n = old[before[0]], new[after[0]]
        while m != n:
            if m < n:
                before.append(left.pop(0))
                m *= old[before[-1]]
            else:
                after.append(right.pop(0))
                n *= new[after[-1]]
        groups.append((before, after))
    return groups
