"""Views of a weight `W + B A`, which keep `W`, `A` and `B` apart.

A product with such a weight is the product with `W`, plus a product with one factor and then with
the other factor. The axes of the weight have small letters, the axes of other arrays have capital
letters, and the rank is `Z`.
"""

import bisect
import dataclasses
import itertools
import math
import operator
import string
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from equinox import field
from jax import lax
from jax.sharding import PartitionSpec
from jaxtyping import Array

from .._box import axes_with
from ._factored_conv import conv_with_factors
from ._named import RANK, Named, common, contract, without
from ._view import Conv, DeclinedError, Dot, Lookup, Ragged, Result, View


class Factored(View):
    """A view of `W + B A`: a view `base` of `W`, and the factors `A` and `B`.

    The axes that only `A` has are inputs of the weight, and those that only `B` has are outputs.
    Both factors have the axes of a stack and the rank. A reshape may give `base` axes of
    size one that neither factor has.
    """

    name: str = field(static=True)
    base: Named
    A: Named
    B: Named

    @property
    def shape(self) -> tuple[int, ...]:
        return self.base.array.shape

    @property
    def dtype(self) -> np.dtype:
        return self.base.array.dtype

    @property
    def inputs(self) -> str:
        return without(self.A.names, self.B.names)

    @property
    def outputs(self) -> str:
        return without(self.B.names, self.A.names)

    def dense(self) -> Array:
        dtype = np.promote_types(self.A.array.dtype, self.B.array.dtype)
        update = contract(self.A.cast(dtype), self.B.cast(dtype), self.base.names).array
        wide = np.promote_types(dtype, self.dtype)
        return (self.base.array.astype(wide) + update.astype(wide)).astype(self.dtype)

    def transposed(self, order: Sequence[int]) -> "Factored":
        names = "".join(self.base.names[axis] for axis in order)
        return dataclasses.replace(self, base=Named(self.base.arranged(names), names))

    def reshaped(self, shape: Sequence[int]) -> Result:
        if 0 in (*self.shape, *shape):
            raise DeclinedError("an empty array")
        names = string.ascii_lowercase[: len(shape)]
        groups_before, groups_after = _groups(self.shape, shape)

        def reshape(factor: Named) -> Named:
            axes = list(zip(self.base.names, self.shape, groups_before, strict=True))
            groups, others = (
                {group for name, size, group in axes if size > 1 and (name in factor.names) == has}
                for has in (True, False)
            )
            if groups & others:
                raise DeclinedError("a reshape that joins axes of different kinds")
            new_axes = zip(names, shape, groups_after, strict=True)
            sizes = {name: size for name, size, group in new_axes if size > 1 and group in groups}
            array = factor.arranged(RANK + common(self.base.names, factor.names))
            return Named(array.reshape(len(array), *sizes.values()), RANK + "".join(sizes))

        base = Named(self.base.array.reshape(shape), names)
        view = Factored(self.name, base, reshape(self.A), reshape(self.B))
        # One row of a matrix is an array of values, not a weight.
        return view if view.inputs and view.outputs else view.dense()

    def cast(self, dtype: np.dtype) -> "Factored":
        return dataclasses.replace(self, base=self.base.cast(dtype))

    def constrained(self, constrain: Callable[[Array], Array]) -> "Factored":
        base = Named(constrain(self.base.array), self.base.names)
        return dataclasses.replace(self, base=base)

    def cut(self, axis: int, start: int | Array, size: int) -> "Factored":
        name = self.base.names[axis]

        def cut(x: Named) -> Named:
            if name not in x.names:
                return x
            return Named(_slice(x.array, start, size, x.names.index(name)), x.names)

        return Factored(self.name, cut(self.base), cut(self.A), cut(self.B))

    def looked_up(self, lookup: Lookup) -> Result:
        names = self.base.names
        places = {names[axis]: p for axis, p in zip(lookup.axes, lookup.places, strict=True)}
        if not any(name in self.A.names + self.B.names for name in places):
            raise DeclinedError("a lookup along an axis of size one")
        index_names = without(string.ascii_lowercase, names)[: len(lookup.at)]
        new = iter(index_names)
        result_axes = lookup.result_axes(self.ndim)
        result_names = "".join(next(new) if axis is None else names[axis] for axis in result_axes)
        view = Factored(
            self.name,
            Named(lookup.gather(self.base.array), result_names),
            _rows(self.A, places, lookup.in_bounds, index_names),
            _rows(self.B, places, lookup.in_bounds, index_names),
        )
        # Rows of an embedding are values. Matrices of a stack, such as experts, are weights.
        has_stack = any(name in self.A.names and name in self.B.names for name in places)
        return view if has_stack else view.dense()

    def dot(self, dot: Dot) -> Array:
        y = dot.applied_to(self.base.array)
        summed = "".join(self.base.names[axis] for axis in dot.weight_axes.summed)
        sums_outputs = common(summed, self.outputs) and not common(summed, self.inputs)
        # First the factor whose axis is summed: the product in between has the rank as its size.
        first, second = (self.B, self.A) if sums_outputs else (self.A, self.B)
        return lax.add(y, _dot_with_factors(dot, first, second, self.base))

    def conv(self, conv: Conv) -> Array:
        return conv_with_factors(conv, self.base, self.A, self.B)

    def ragged(self, ragged: Ragged) -> Array:
        stack, summed, *more = self.base.names
        kept = "".join(more)
        first, second = (self.A, self.B) if summed in self.A.names else (self.B, self.A)
        has_axes = {*first.names} == {RANK, stack, summed}, {*second.names} == {RANK, stack, *kept}
        if not all(has_axes):
            raise DeclinedError("a ragged product of axes that are not a stack, inputs and outputs")
        dtype = ragged.x.dtype
        low_rank = ragged.product(ragged.x, first.cast(dtype).arranged(stack + summed + RANK))
        second_matrices = second.cast(dtype).arranged(stack + RANK + kept)
        update = ragged.product(low_rank.astype(dtype), second_matrices)
        return ragged.product(ragged.x, self.base.array) + update

    def scanned(self) -> tuple[dict[str, Array], Callable[[dict[str, Array]], "Factored"]]:
        axis = self.base.names[0]
        fields = {"base": self.base, "A": self.A, "B": self.B}
        names = {key: without(x.names, axis) for key, x in fields.items() if axis in x.names}

        def slice_of(slices: dict[str, Array]) -> Factored:
            parts = {key: Named(x, names[key]) for key, x in slices.items()}
            return dataclasses.replace(self, **parts)

        return {key: fields[key].arranged(axis + names[key]) for key in names}, slice_of

    def specs(self, spec: PartitionSpec) -> "Factored":
        mesh_axes = dict(itertools.zip_longest(self.base.names, spec))
        specs = [PartitionSpec(*map(mesh_axes.get, x.names)) for x in (self.base, self.A, self.B)]
        return jax.tree.unflatten(jax.tree.structure(self), specs)


def factored(name: str, weight: Array, A: Array, B: Array, kinds: str) -> Factored:
    """The view of a weight with an update.

    - `A`, `B`: `(*stack, r, in)` and `(*stack, out, r)`.
    - `kinds`: a letter for each axis of the weight: `i` (inputs), `o` (outputs), `s` (of a stack).
    """
    names, rank = string.ascii_lowercase[: weight.ndim], A.shape[-2]
    sizes = {RANK: rank, **dict(zip(names, weight.shape, strict=True))}
    stack, outputs, inputs = (
        "".join(names[axis] for axis in axes_with(kind, kinds)) for kind in ("s", "o", "i")
    )

    def split(factor: Array, factor_names: str) -> Named:
        return Named(lax.reshape(factor, [sizes[n] for n in factor_names]), factor_names)

    A_split, B_split = split(A, stack + RANK + inputs), split(B, stack + outputs + RANK)
    return Factored(name, Named(weight, names), A_split, B_split)


def _rows(
    factor: Named, places: dict[str, Array], in_bounds: Array | None, index_names: str
) -> Named:
    """A factor at these places of its axes, and zero out of bounds."""
    places = {name: p for name, p in places.items() if name in factor.names}
    if not places:
        return factor
    free = "".join(name for name in factor.names if name not in places)
    rows = factor.arranged("".join(places) + free).at[tuple(places.values())].get(mode="clip")
    if in_bounds is not None:
        in_bounds = jnp.expand_dims(in_bounds, [*range(len(index_names), rows.ndim)])
        rows = jnp.where(in_bounds, rows, jnp.zeros((), rows.dtype))
    return Named(rows, index_names + free)


def _slice(array: Array, start: int | Array, size: int, axis: int) -> Array:
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


def _dot_with_factors(dot: Dot, first: Named, second: Named, base: Named) -> Array:
    """The product with `B A` alone, which multiplies `x` by the `first` factor, then `second`."""
    x_names, out_names = dot.names(base.names)
    # A product may be wider than its factors: `preferred_element_type`.
    dtype = np.promote_types(dot.x.dtype, dot.out.dtype)
    # An algorithm is chosen for the dtypes that the function multiplies.
    has_same_dtypes = dtype == dot.x.dtype == base.array.dtype
    precision = dot.precision if has_same_dtypes or _is_plain(dot.precision) else None
    needed = "".join(dict.fromkeys(out_names + without(second.names, RANK)))
    kept = common(needed, x_names + first.names) + RANK
    low_rank = contract(Named(dot.x, x_names).cast(dtype), first.cast(dtype), kept, precision)
    y = contract(low_rank, second.cast(dtype), out_names, precision)
    return lax.convert_element_type(y.array, dot.out.dtype)


def _is_plain(precision: lax.PrecisionLike) -> bool:
    """Whether a precision is `None` or a `jax.lax.Precision`, and not an algorithm."""
    first = precision[0] if isinstance(precision, tuple) else precision
    return first is None or isinstance(first, lax.Precision)
