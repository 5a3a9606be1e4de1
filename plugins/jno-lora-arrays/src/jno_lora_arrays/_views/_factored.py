"""Views of a weight `W + B A`, which keep `W`, `A` and `B` apart."""

import bisect
import dataclasses
import itertools
import math
import operator
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

from ._low_rank import RANK, Named, contract, conv_with_factors, dot_with_factors
from ._view import Conv, DeclinedError, Dot, Lookup, Ragged, View

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
        if 0 in (*self.shape, *shape):
            raise DeclinedError("an empty array")
        group_kinds: dict[int, str] = {}
        groups_before, groups_after = _groups(self.shape, shape)
        for group, size, kind in zip(groups_before, self.shape, self.kinds, strict=True):
            if size > 1 and group_kinds.setdefault(group, kind) != kind:
                raise DeclinedError("a reshape that joins axes of different kinds")
        kinds = "".join(
            "1" if size == 1 else group_kinds[group]
            for group, size in zip(groups_after, shape, strict=True)
        )

        def reshape(factor: Array, factor_kinds: str) -> Array:
            sizes = (n for n, kind in zip(shape, kinds, strict=True) if kind in factor_kinds)
            return factor.reshape(factor.shape[0], *sizes)

        view = self._map(self.base.reshape(shape), reshape, kinds)
        # One row of a matrix is values.
        return view if {"i", "o"} <= {*kinds} else view.dense()

    def cast(self, dtype: Any) -> "Factored":
        return dataclasses.replace(self, base=self.base.astype(dtype))

    def plus(self, array: Array) -> "Factored":
        return dataclasses.replace(self, base=self.base + array)

    def constrained(self, constrain: Callable[[Array], Array]) -> "Factored":
        return dataclasses.replace(self, base=constrain(self.base))

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
            raise DeclinedError("a lookup along an axis of size one")
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
            raise DeclinedError("a ragged product of axes that are not a stack, inputs and outputs")
        first, second = (self.A, self.B) if self.kinds == "sio" else (self.B, self.A)
        dtype = ragged.x.dtype
        low_rank = ragged.product(ragged.x, first.astype(dtype).transpose(1, 2, 0)).astype(dtype)
        update = ragged.product(low_rank, second.astype(dtype).transpose(1, 0, 2))
        return ragged.product(ragged.x, self.base) + update

    def scanned(self) -> tuple[Any, Callable[[Any], "Factored"]]:
        arrays = {"base": self.base}
        if self.kinds[0] in _KINDS_OF_A:
            arrays["A"] = jnp.moveaxis(self.A, 1, 0)
        if self.kinds[0] in _KINDS_OF_B:
            arrays["B"] = jnp.moveaxis(self.B, 1, 0)
        return arrays, lambda slices: dataclasses.replace(self, **slices, kinds=self.kinds[1:])

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


def _of_kinds(wanted: str, names: str, kinds: str) -> str:
    return "".join(name for name, kind in zip(names, kinds, strict=True) if kind in wanted)


def _looked_up(factor: Named, lookup: Lookup, axis_names: str, index_names: str) -> Named:
    """A factor at the places of a lookup; the factor itself if it has none of the axes."""
    pairs = zip(lookup.axes, lookup.places, strict=True)
    places = {axis_names[axis]: p for axis, p in pairs if axis_names[axis] in factor.names}
    if not places:
        return factor
    free_names = "".join(name for name in factor.names if name not in places)
    rows = factor.arranged("".join(places) + free_names).at[tuple(places.values())].get(mode="clip")
    if lookup.in_bounds is not None:
        in_bounds = jnp.expand_dims(lookup.in_bounds, [*range(len(index_names), rows.ndim)])
        rows = jnp.where(in_bounds, rows, jnp.zeros((), rows.dtype))
    return Named(rows, index_names + free_names)


def _slice(array: Array, start: Any, size: int, axis: int) -> Array:
    if isinstance(start, int):
        return lax.slice_in_dim(array, start, start + size, axis=axis)
    return lax.dynamic_slice_in_dim(array, start, size, axis)


def _groups(old: Sequence[int], new: Sequence[int]) -> tuple[list[int], list[int]]:
    """For each axis before and after a reshape, the end of its group.

    A group is the fewest neighbouring axes whose sizes have the same product before and after.
    """
    old_ends, new_ends = (list(itertools.accumulate(n, operator.mul)) for n in (old, new))
    group_ends = sorted({*old_ends} & {*new_ends} | {math.prod(old)})

    def group(end: int) -> int:
        return group_ends[bisect.bisect_left(group_ends, end)]

    return list(map(group, old_ends)), list(map(group, new_ends))
