"""Views of a weight `W + B A`, which keep `W`, `A` and `B` apart.

A product with such a weight is the product with `W`, plus a product with one factor and then with
the other factor. The axes of all arrays have names, one letter each: axes of the weight have small
letters, axes of other arrays capital letters, and the rank is `Z`.
"""

import bisect
import dataclasses
import itertools
import math
import operator
import string
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import PartitionSpec
from jaxtyping import Array

from ._view import Conv, DeclinedError, Dot, Lookup, Ragged, View

RANK = "Z"


class Named(NamedTuple):
    """An array with a letter for each of its axes."""

    array: Array
    names: str

    def axes(self, names: Iterable[str]) -> list[int]:
        return [self.names.index(name) for name in names]

    def cast(self, dtype: Any) -> "Named":
        """In another dtype. Traces faster than `astype`."""
        return self._replace(array=lax.convert_element_type(self.array, dtype))

    def arranged(self, names: str) -> Array:
        """The array with its axes in this order, and an axis of size one for each missing name."""
        array = lax.transpose(self.array, self.axes(n for n in names if n in self.names))
        missing = [axis for axis, name in enumerate(names) if name not in self.names]
        return lax.expand_dims(array, missing) if missing else array


def _contract(a: Named, b: Named, names: str, precision: Any = None) -> Named:
    """The sum of `a b` over the axes that are not in `names`. Traces faster than `jnp.einsum`.

    A name that is in only one of the arrays, and not in `names`, must belong to an axis of size 1.
    """
    shared = [name for name in a.names if name in b.names]
    batch = [name for name in shared if name in names]
    summed = [name for name in shared if name not in names]
    numbers = ((a.axes(summed), b.axes(summed)), (a.axes(batch), b.axes(batch)))
    y = lax.dot_general(a.array, b.array, numbers, precision=precision)
    free = [name for name in a.names + b.names if name not in shared]
    dropped = [len(batch) + n for n, name in enumerate(free) if name not in names]
    remaining = "".join(name for name in batch + free if name in names)
    y = lax.squeeze(y, dropped) if dropped else y
    return Named(Named(y, remaining).arranged(names), names)


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
        update = _contract(A, B, _of_kinds("ios", self.axis_names, self.kinds)).array
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
        # One row of a matrix is an array of values, not a weight.
        return view if {"i", "o"} <= {*kinds} else view.dense()

    def cast(self, dtype: Any) -> "Factored":
        return dataclasses.replace(self, base=self.base.astype(dtype))

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
        # Rows of an embedding are values. Matrices of a stack, such as experts, are weights.
        return view if "s" in {self.kinds[axis] for axis in lookup.axes} else view.dense()

    def dot(self, dot: Dot) -> Any:
        y = dot.applied_to(self.base)
        A, B = self.factors()
        sums_outputs = {self.kinds[axis] for axis in dot.weight_axes.summed} == {"o"}
        first, second = (B, A) if sums_outputs else (A, B)
        return lax.add(y, _dot_with_factors(dot, first, second, self.axis_names, self.dtype))

    def conv(self, conv: Conv) -> Any:
        return _conv_with_factors(conv, self.base, *self.factors(), self.kinds, self.axis_names)

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


def _dot_with_factors(
    dot: Dot, first: Named, second: Named, weight_names: str, weight_dtype: Any
) -> Array:
    """The product with `B A` alone, which multiplies `x` by the `first` factor, then `second`."""
    x_names, out_names = dot.names(weight_names)
    # A product may be wider than its factors: `preferred_element_type`.
    dtype = np.promote_types(dot.x.dtype, dot.out.dtype)
    x = Named(dot.x, x_names).cast(dtype)
    first, second = first.cast(dtype), second.cast(dtype)
    # An algorithm is chosen for the dtypes that the function multiplies.
    has_same_dtypes = dtype == dot.x.dtype == weight_dtype
    precision = dot.precision if has_same_dtypes or _is_plain(dot.precision) else None
    needed = dict.fromkeys(out_names + second.names)
    names = [name for name in needed if name in x.names + first.names and name != RANK]
    x = _contract(x, first, "".join(names) + RANK, precision)
    names = [name for name in out_names if name in x.names + second.names]
    y = _contract(x, second, "".join(names), precision).array
    return lax.convert_element_type(lax.reshape(y, dot.out.shape), dot.out.dtype)


def _is_plain(precision: Any) -> bool:
    """Whether a precision is `None` or a `jax.lax.Precision`, and not an algorithm."""
    first = precision[0] if isinstance(precision, tuple) else precision
    return first is None or isinstance(first, lax.Precision)


def _conv_with_factors(
    conv: Conv, base: Array, A: Named, B: Named, kinds: str, axis_names: str
) -> Array:
    """The convolution with `W`, plus a convolution to the rank's channels and a product."""
    starts_with_A, convolves_last = _order(conv, kinds)
    rank, out_channels = len(A.array), conv.out.shape[conv.params["dimension_numbers"].out_spec[1]]
    if 2 * conv.groups * rank > out_channels:
        raise DeclinedError("merging is cheaper: the kernel has few channels", is_choice=True)
    first, second = (A, B) if starts_with_A else (B, A)
    dtype = np.promote_types(conv.x.dtype, conv.out.dtype)
    x, first, second = conv.x.astype(dtype), first.cast(dtype), second.cast(dtype)
    y = conv.applied_to(conv.x, base, conv.out.dtype)
    update = _product_then_conv if convolves_last else _conv_then_product
    return y + update(conv, x, first, second, axis_names).reshape(y.shape).astype(y.dtype)


def _order(conv: Conv, kinds: str) -> tuple[bool, bool]:
    """Whether `A` comes first, and whether the second factor has the places of the kernel."""
    outputs, inputs, *places = (kinds[axis] for axis in conv.kernel_axes)
    place_kinds = {*places} - {"1"}
    has_stack = "s" in (outputs, inputs, *place_kinds)
    if conv.params["batch_group_count"] != 1 or has_stack or len(place_kinds) > 1:
        raise DeclinedError("a convolution that sums over other axes than a product does")
    # An axis of size one belongs to the side of its neighbours.
    summed = next((kind for kind in (inputs, *place_kinds) if kind != "1"), None)
    if summed is None:
        summed = "o" if outputs == "i" else "i"
    convolves_last = bool(place_kinds - {summed})
    if outputs == summed or (convolves_last and (conv.groups != 1 or inputs == "1")):
        raise DeclinedError("a convolution whose inputs and outputs are of one kind")
    return summed == "i", convolves_last


def _product_then_conv(conv: Conv, x: Array, first: Named, second: Named, axis_names: str) -> Array:
    """A product of the channels with a factor, whose result is convolved with the other factor."""
    input_name = axis_names[conv.kernel_axes[1]]
    names = string.ascii_uppercase[: x.ndim]
    channel = names[conv.params["dimension_numbers"].lhs_spec[1]]
    named = Named(x, names.replace(channel, input_name))
    x = _contract(named, first, names.replace(channel, RANK), conv.params["precision"]).array
    return conv.applied_to(x, second.arranged(axis_names.replace(input_name, RANK)), x.dtype)


def _conv_then_product(conv: Conv, x: Array, first: Named, second: Named, axis_names: str) -> Array:
    """A convolution with a factor, whose channels are multiplied with the other factor."""
    outputs, rank = conv.kernel_axes[0], len(first.array)
    kernel = first.arranged(axis_names.replace(axis_names[outputs], RANK))
    x = conv.applied_to(x, jnp.concatenate([kernel] * conv.groups, axis=outputs), x.dtype)
    channel = conv.params["dimension_numbers"].out_spec[1]
    names = string.ascii_uppercase[: x.ndim]
    x = x.reshape(*x.shape[:channel], conv.groups, rank, *x.shape[channel + 1 :])
    first = Named(x, names.replace(names[channel], f"g{RANK}"))
    second = Named(second.array.reshape(rank, conv.groups, -1), f"{RANK}go")
    names = names.replace(names[channel], "go")
    return _contract(first, second, names, conv.params["precision"]).array
