"""Views of an adapted weight, as the rules see them."""

import abc
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import equinox as eqx
import jax
from equinox import AbstractVar
from jax.sharding import PartitionSpec
from jaxtyping import Array

from ._uses import Conv, Declined, Dot, Lookup, Ragged


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

    def product(self, use: Dot | Conv) -> Any:
        """A product with an array, or a convolution with this kernel."""
        return self.dot(use) if isinstance(use, Dot) else self.conv(use)

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
        """For a scan over the first axis: arrays to scan over, and the view of their slices.

        `None` if the view cannot be scanned.
        """

    def specs(self, spec: PartitionSpec) -> Any:
        """The sharding of each array of the view, given the view's; `None` if there is none.

        By default an adapter is whole on every device.
        """
        return None if any(spec) else jax.tree.map(lambda _: PartitionSpec(), self)
