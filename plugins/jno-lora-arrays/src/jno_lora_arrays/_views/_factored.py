"""Views of a weight `W + B A`, which keep `W`, `A` and `B` apart."""

import string
from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import PartitionSpec
from jaxtyping import Array

from ._factored_conv import conv_with_factors
from ._factored_dot import dot_with_factors, ragged_with_factors
from ._named import RANK, Named, contract
from ._uses import Conv, Declined, Dot, Lookup, Ragged
from ._view import View

# The kinds of axes that each factor has, beside its rank.
_KINDS_OF_A, _KINDS_OF_B = "is", "os"


class Factored(View):
    """A view of `W + B A`: a view of `W`, and the factors along those axes that they have.

    - `base`: the view of `W`.
    - `A`, `B`: the factors. Their first axis is the rank. The other axes are, in the view's order,
        inputs or axes of a stack for `A`, and outputs or axes of a stack for `B`.
    - `kinds`: a letter for each axis of the view: `i` (an input), `o` (an output), `s` (of a stack)
        or `1` (of size one, which neither factor has).
    """

    base: Array
    A: Array
    B: Array
    kinds: str = eqx.field(static=True)
    name: str = eqx.field(static=True)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.base.shape

    @property
    def dtype(self) -> Any:
        return self.base.dtype

    @property
    def axis_names(self) -> str:
        """A name for each axis of the view."""
        return string.ascii_lowercase[: self.ndim]

    def factors(self) -> tuple[Named, Named]:
        """`A` and `B`, with the names of their axes."""
        names, kinds = self.axis_names, self.kinds
        return (
            Named(self.A, RANK + _of_kinds(_KINDS_OF_A, names, kinds)),
            Named(self.B, RANK + _of_kinds(_KINDS_OF_B, names, kinds)),
        )

    def dense(self) -> Array:
        dtype = np.promote_types(self.A.dtype, self.B.dtype)
        A, B = (factor.cast(dtype) for factor in self.factors())
        update = contract(A, B, _of_kinds("ios", self.axis_names, self.kinds)).array
        wide = np.promote_types(dtype, self.dtype)
        return (self.base.astype(wide) + update.reshape(self.shape).astype(wide)).astype(self.dtype)

    def transposed(self, order: Sequence[int]) -> "Factored":
        def transpose(factor: Array, factor_kinds: str) -> Array:
            axes = [axis for axis, kind in enumerate(self.kinds) if kind in factor_kinds]
            return factor.transpose([0, *(1 + axes.index(axis) for axis in order if axis in axes)])

        kinds = "".join(self.kinds[axis] for axis in order)
        return self._map(self.base.transpose(order), transpose, kinds)

    def reshaped(self, shape: Sequence[int]) -> Any:
        groups = _matching_axes(self.shape, shape)
        if groups is None:
            return Declined("an empty array")
        kinds = ["1"] * len(shape)
        for old_axes, new_axes in groups:
            if len({self.kinds[axis] for axis in old_axes}) > 1:
                return Declined("a reshape that joins axes of different kinds")
            for axis in new_axes:
                kinds[axis] = self.kinds[old_axes[0]]

        def reshape(factor: Array, factor_kinds: str) -> Array:
            sizes = (n for n, kind in zip(shape, kinds, strict=True) if kind in factor_kinds)
            return factor.reshape(factor.shape[0], *sizes)

        view = self._map(self.base.reshape(shape), reshape, "".join(kinds))
        # One row of a matrix is values.
        return view if {"i", "o"} <= {*kinds} else view.dense()

    def cast(self, dtype: Any) -> "Factored":
        return self._with_base(self.base.astype(dtype))

    def plus(self, array: Array) -> "Factored":
        return self._with_base(self.base + array)

    def constrained(self, constrain: Callable[[Array], Array]) -> "Factored":
        return self._with_base(constrain(self.base))

    def cut(self, axis: int, start: Any, size: int) -> "Factored":
        def cut(factor: Array, factor_kinds: str) -> Array:
            if self.kinds[axis] not in factor_kinds:
                return factor
            before = sum(kind in factor_kinds for kind in self.kinds[:axis])
            return _slice(factor, start, size, 1 + before)

        return self._map(_slice(self.base, start, size, axis), cut, self.kinds)

    def looked_up(self, lookup: Lookup) -> Any:
        kinds = {self.kinds[axis] for axis in lookup.axes} - {"1"}
        if not kinds:
            return Declined("a lookup along an axis of size one")
        index_kind = kinds.pop() if len(kinds) == 1 else "s"
        index_names = string.ascii_uppercase[: len(lookup.at)]
        next_index, result_names, result_kinds = iter(index_names), "", ""
        for axis in lookup.result_axes(self.ndim):
            result_names += next(next_index) if axis is None else self.axis_names[axis]
            result_kinds += index_kind if axis is None else self.kinds[axis]

        def look_up(factor: Named, factor_kinds: str) -> Array:
            names = RANK + _of_kinds(factor_kinds, result_names, result_kinds)
            return _looked_up(factor, lookup, self.axis_names, index_names).arranged(names)

        A, B = self.factors()
        A, B = look_up(A, _KINDS_OF_A), look_up(B, _KINDS_OF_B)
        view = Factored(lookup.gather(self.base), A, B, result_kinds, self.name)
        # Rows of an embedding are values. Matrices of a stack, as of some experts, are weights.
        return view if "s" in {self.kinds[axis] for axis in lookup.axes} else view.dense()

    def dot(self, dot: Dot) -> Any:
        y = dot.applied_to(self.base)
        A, B = self.factors()
        sums_outputs = {self.kinds[axis] for axis in dot.weight_axes.summed} == {"o"}
        first, second = (B, A) if sums_outputs else (A, B)
        return lax.add(y, dot_with_factors(dot, first, second, self.axis_names, self.dtype))

    def conv(self, conv: Conv) -> Any:
        return conv_with_factors(conv, self.base, *self.factors(), self.kinds, self.axis_names)

    def ragged(self, ragged: Ragged) -> Any:
        if self.kinds not in ("sio", "soi"):
            return Declined("a ragged product over other axes than those of a stack and a product")
        first, second = (self.A, self.B) if self.kinds == "sio" else (self.B, self.A)
        return ragged_with_factors(ragged, self.base, first, second)

    def scanned(self) -> tuple[Any, Callable[[Any], "Factored"]]:
        kind = self.kinds[0]
        factors = {"A": (self.A, _KINDS_OF_A), "B": (self.B, _KINDS_OF_B)}
        moving = {n: jnp.moveaxis(f, 1, 0) for n, (f, kinds) in factors.items() if kind in kinds}
        fixed = {n: f for n, (f, kinds) in factors.items() if kind not in kinds}

        def slice_of(arrays: Any) -> Factored:
            base, moved = arrays
            return Factored(base, **fixed, **moved, kinds=self.kinds[1:], name=self.name)

        return (self.base, moving), slice_of

    def specs(self, spec: PartitionSpec) -> Any:
        mesh_axes = [*spec, *[None] * (self.ndim - len(spec))]

        def factor_spec(factor_kinds: str) -> PartitionSpec:
            pairs = zip(mesh_axes, self.kinds, strict=True)
            return PartitionSpec(None, *(axes for axes, kind in pairs if kind in factor_kinds))

        specs = [spec, factor_spec(_KINDS_OF_A), factor_spec(_KINDS_OF_B)]
        return jax.tree.unflatten(jax.tree.structure(self), specs)

    def _map(self, base: Array, change: Callable[[Array, str], Array], kinds: str) -> "Factored":
        """Another base, and `change(factor, the kinds of its axes)` for each factor."""
        A, B = change(self.A, _KINDS_OF_A), change(self.B, _KINDS_OF_B)
        return Factored(base, A, B, kinds, self.name)

    def _with_base(self, base: Array) -> "Factored":
        return Factored(base, self.A, self.B, self.kinds, self.name)


def _of_kinds(wanted: str, names: str, kinds: str) -> str:
    """The names of the axes of these kinds."""
    return "".join(name for name, kind in zip(names, kinds, strict=True) if kind in wanted)


def _looked_up(factor: Named, lookup: Lookup, axis_names: str, index_names: str) -> Named:
    """A factor at the places of a lookup; the factor itself if it has none of the axes."""
    pairs = zip(lookup.axes, lookup.places, strict=True)
    places = {axis_names[axis]: p for axis, p in pairs if axis_names[axis] in factor.names}
    if not places:
        return factor
    others = "".join(name for name in factor.names if name not in places)
    rows = factor.arranged("".join(places) + others).at[tuple(places.values())].get(mode="clip")
    if lookup.in_bounds is not None:
        in_bounds = jnp.expand_dims(lookup.in_bounds, [*range(len(index_names), rows.ndim)])
        rows = jnp.where(in_bounds, rows, jnp.zeros((), rows.dtype))
    return Named(rows, index_names + others)


def _slice(array: Array, start: Any, size: int, axis: int) -> Array:
    if isinstance(start, int):
        return lax.slice_in_dim(array, start, start + size, axis=axis)
    return lax.dynamic_slice_in_dim(array, start, size, axis)


def _matching_axes(
    old: Sequence[int], new: Sequence[int]
) -> list[tuple[list[int], list[int]]] | None:
    """The smallest groups of neighbouring axes with equal sizes, before and after a reshape.

    Axes of size one belong to no group. `None` if the array is empty.
    """
    if 0 in (*old, *new):
        return None
    old_axes = [axis for axis, size in enumerate(old) if size != 1]
    new_axes = [axis for axis, size in enumerate(new) if size != 1]
    groups: list[tuple[list[int], list[int]]] = []
    while old_axes:
        before, after = [old_axes.pop(0)], [new_axes.pop(0)]
        size_before, size_after = old[before[0]], new[after[0]]
        while size_before != size_after:
            if size_before < size_after:
                before.append(old_axes.pop(0))
                size_before *= old[before[-1]]
            else:
                after.append(new_axes.pop(0))
                size_after *= new[after[-1]]
        groups.append((before, after))
    return groups
