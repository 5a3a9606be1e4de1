"""Views of a weight `W + B A`, which keep `W`, `A` and `B` apart."""

import functools
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

from ._products import contract
from ._views import Conv, Declined, Dot, Lookup, Ragged, View, regrouped

_RANK = "Z"  # the name of the rank axis, beside a small letter for each other axis


class Factored(View):
    """A view of `W + B A`: that of `W`, and the factors along those axes that they have.

    - `base`: the view of `W`.
    - `A`, `B`: the factors. Their first axis is the rank. The others are those axes of the view, in
        its order, that are inputs or of a stack for `A`, and outputs or of a stack for `B`.
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

    def dense(self) -> Array:
        names = string.ascii_lowercase[: self.ndim]
        dtype = np.promote_types(self.A.dtype, self.B.dtype)
        A, B = self.A.astype(dtype), self.B.astype(dtype)
        kept = _of_kind("ios", names, self.kinds)
        update = contract(A, self._names("is", names), B, self._names("os", names), kept)
        wide = np.promote_types(dtype, self.dtype)
        return (self.base.astype(wide) + update.reshape(self.shape).astype(wide)).astype(self.dtype)

    def transposed(self, order: Sequence[int]) -> "Factored":
        def moved(factor: Array, has: str) -> Array:
            own = [axis for axis, kind in enumerate(self.kinds) if kind in has]
            new = [1 + own.index(axis) for axis in order if axis in own]
            return factor.transpose([0, *new])

        kinds = "".join(self.kinds[axis] for axis in order)
        base = self.base.transpose(order)
        return self._with(base, moved(self.A, "is"), moved(self.B, "os"), kinds)

    def reshaped(self, shape: Sequence[int]) -> Any:
        kinds = ["1"] * len(shape)
        groups = regrouped(self.shape, shape)
        if groups is None:
            return Declined("an empty array")
        for before, after in groups:
            of_group = {self.kinds[axis] for axis in before}
            if len(of_group) > 1:
                return Declined("a reshape that joins axes of different kinds")
            for axis in after:
                kinds[axis] = "1" if shape[axis] == 1 else self.kinds[before[0]]

        def factor(array: Array, has: str) -> Array:
            sizes = (size for size, kind in zip(shape, kinds, strict=True) if kind in has)
            return array.reshape(array.shape[0], *sizes)

        A, B = factor(self.A, "is"), factor(self.B, "os")
        view = self._with(self.base.reshape(shape), A, B, "".join(kinds))
        # One row of a matrix is values.
        return view if {"i", "o"} <= {*kinds} else view.dense()

    def cast(self, dtype: Any) -> "Factored":
        return self._with(self.base.astype(dtype), self.A, self.B, self.kinds)

    def plus(self, array: Array) -> "Factored":
        return self._with(self.base + array, self.A, self.B, self.kinds)

    def constrained(self, constrain: Callable[[Array], Array]) -> "Factored":
        return self._with(constrain(self.base), self.A, self.B, self.kinds)

    def cut(self, axis: int, start: Any, size: int) -> "Factored":
        def part(array: Array, has: str) -> Array:
            if self.kinds[axis] not in has:
                return array
            place = 1 + sum(kind in has for kind in self.kinds[:axis])
            return _part(array, start, size, place)

        base = _part(self.base, start, size, axis)
        return self._with(base, part(self.A, "is"), part(self.B, "os"), self.kinds)

    def looked_up(self, lookup: Lookup) -> Any:
        kinds = {self.kinds[axis] for axis in lookup.axes} - {"1"}
        if not kinds:
            return Declined("a lookup along an axis of size one")
        names = string.ascii_lowercase[: self.ndim]
        batch = string.ascii_uppercase[: len(lookup.at)]
        others = iter([axis for axis in range(self.ndim) if axis not in lookup.axes])
        kind_of = dict.fromkeys(batch, kinds.pop() if len(kinds) == 1 else "s")
        result = ""
        for place in range(len(lookup.out.shape)):
            if place in lookup.at:
                result += batch[lookup.at.index(place)]
            else:
                axis = next(others)
                result += names[axis]
                kind_of[names[axis]] = self.kinds[axis]

        def found(factor: Array, has: str) -> Array:
            own = self._names(has, names)
            asked = {
                own.index(names[a]): p
                for a, p in zip(lookup.axes, lookup.places, strict=True)
                if names[a] in own
            }
            if asked:
                rest = [axis for axis in range(factor.ndim) if axis not in asked]
                factor = (
                    factor.transpose([*asked, *rest]).at[tuple(asked.values())].get(mode="clip")
                )
                own = batch + "".join(own[axis] for axis in rest)
                if lookup.is_there is not None:
                    there = lookup.is_there.reshape(*lookup.is_there.shape, *(1,) * len(rest))
                    factor = jnp.where(there, factor, jnp.zeros((), factor.dtype))
            wanted = _RANK + "".join(name for name in result if kind_of[name] in has)
            return factor.transpose([own.index(name) for name in wanted])

        new_kinds = "".join(kind_of[name] for name in result)
        base = lookup.gather(self.base)
        view = self._with(base, found(self.A, "is"), found(self.B, "os"), new_kinds)
        # Rows of an embedding are values. Matrices of a stack, as of some experts, are weights.
        return view if "s" in {self.kinds[axis] for axis in lookup.axes} else view.dense()

    def dot(self, dot: Dot) -> Any:
        names = string.ascii_lowercase[: self.ndim]
        of_x = list(string.ascii_uppercase[: dot.x.ndim])
        for mine, theirs in zip(dot.of_weight, dot.of_x, strict=True):
            for axis, other in zip(mine, theirs, strict=True):
                of_x[other] = names[axis]
        x_free, w_free = dot.free()
        free = ([of_x[axis] for axis in x_free], [names[axis] for axis in w_free])
        batch = [names[axis] for axis in dot.of_weight[1]]
        out = "".join([*batch, *(free[1] + free[0] if dot.weight_first else free[0] + free[1])])
        sides = [dot.of_weight, dot.of_x] if dot.weight_first else [dot.of_x, dot.of_weight]
        numbers = tuple((sides[0][n], sides[1][n]) for n in range(2))
        both = (self.base, dot.x) if dot.weight_first else (dot.x, self.base)
        y = lax.dot_general(
            *both, numbers, precision=dot.precision, preferred_element_type=dot.out.dtype
        )
        summed = {self.kinds[axis] for axis in dot.of_weight[0]}
        update = self._update(dot, "".join(of_x), out, names, is_first="AB"[summed == {"o"}])
        return lax.add(y, update)

    def _update(self, dot: Dot, of_x: str, out: str, names: str, is_first: str) -> Array:
        """The product with `B A` alone, in the layout of the whole product."""
        sides = ((self.A, "is"), (self.B, "os"))
        (first, has_first), (second, has_second) = sides if is_first == "A" else sides[::-1]
        of_first, of_second = self._names(has_first, names), self._names(has_second, names)
        # A product may be wider than its factors: `preferred_element_type`.
        dtype = np.promote_types(dot.x.dtype, dot.out.dtype)
        x, first, second = (_cast(array, dtype) for array in (dot.x, first, second))
        # An algorithm is one for dtypes.
        precision = dot.precision
        if not (dtype == dot.x.dtype == self.dtype or _is_plain(precision)):
            precision = None
        needed = {*of_second, *out}
        low = [name for name in (*out, *of_second) if name in {*of_x, *of_first} & needed]
        low = "".join(dict.fromkeys(name for name in low if name != _RANK)) + _RANK
        h = contract(x, of_x, first, of_first, low, precision=precision)
        seen = "".join(name for name in out if name in low or name in of_second)
        y = contract(h, low, second, of_second, seen, precision=precision)
        return _cast(lax.reshape(y, dot.out.shape), dot.out.dtype)

    def conv(self, conv: Conv) -> Any:
        numbers, groups = conv.params["dimension_numbers"], conv.params["feature_group_count"]
        outputs, inputs, *spatial = numbers.rhs_spec
        sides = (self.kinds[inputs], self.kinds[outputs])
        over = {self.kinds[axis] for axis in spatial} - {"1"}
        if conv.params["batch_group_count"] != 1 or "s" in (*sides, *over) or len(over) > 1:
            return Declined("a convolution that sums over other axes than a product does")
        # An axis of size one goes with the others.
        kind_in = next((k for k in (sides[0], *over) if k != "1"), "o" if sides[1] == "i" else "i")
        kind_out = "o" if kind_in == "i" else "i"
        mixes_before = bool(over - {kind_in})  # the kernel's places belong to the outputs
        if sides[1] not in (kind_out, "1") or (mixes_before and (groups != 1 or sides[0] == "1")):
            return Declined("a convolution whose inputs and outputs are of one kind")
        if not self._is_narrow(conv, groups):
            return Declined("merging is cheaper: the kernel has few channels", is_choice=True)
        names = string.ascii_lowercase[: self.ndim]
        first, has_first = (self.A, "is") if kind_in == "i" else (self.B, "os")
        second, has_second = (self.B, "os") if kind_in == "i" else (self.A, "is")
        of_first, of_second = self._names(has_first, names), self._names(has_second, names)
        dtype = np.promote_types(conv.x.dtype, conv.out.dtype)
        x, first, second = conv.x.astype(dtype), first.astype(dtype), second.astype(dtype)
        y = self._convolved(conv, conv.x, self.base, conv.out.dtype)
        precision = conv.params["precision"]

        def kernel(factor: Array, own: str, output: str, input: str) -> Array:
            """A factor as a kernel: with the rank in the place of one of the two channels."""
            wanted = list(names)
            wanted[outputs], wanted[inputs] = output, input
            present = [name for name in wanted if name in own]
            moved = factor.transpose([own.index(name) for name in present])
            return jnp.expand_dims(moved, [axis for axis, n in enumerate(wanted) if n not in own])

        rank = first.shape[0]
        out_channel = numbers.out_spec[1]
        if mixes_before:
            at = list(string.ascii_uppercase[: x.ndim])
            at[numbers.lhs_spec[1]] = names[inputs]
            of_x = "".join(at)
            low = of_x.replace(names[inputs], _RANK)
            h = contract(x, of_x, first, of_first, low, precision=precision)
            up = kernel(second, of_second, names[outputs], _RANK)
            update = self._convolved(conv, h, up, dtype)
            return y + update.astype(y.dtype)
        down = kernel(first, of_first, _RANK, names[inputs])
        h = self._convolved(conv, x, jnp.concatenate([down] * groups, axis=outputs), dtype)
        h = h.reshape(*h.shape[:out_channel], groups, rank, *h.shape[out_channel + 1 :])
        up = second.reshape(rank, groups, -1)
        letters = string.ascii_uppercase[: conv.x.ndim]
        of_h = letters[:out_channel] + "g" + _RANK + letters[out_channel + 1 :]
        result = letters[:out_channel] + "go" + letters[out_channel + 1 :]
        update = contract(h, of_h, up, _RANK + "go", result, precision=precision)
        return y + update.reshape(y.shape).astype(y.dtype)

    def _is_narrow(self, conv: Conv, groups: int) -> bool:
        """Whether a convolution to the rank's channels is cheap beside that to the outputs."""
        channels = conv.out.shape[conv.params["dimension_numbers"].out_spec[1]]
        return 2 * groups * self.A.shape[0] <= channels

    @staticmethod
    def _convolved(conv: Conv, x: Array, kernel: Array, dtype: Any) -> Array:
        names = ("window_strides", "padding", "lhs_dilation", "rhs_dilation", "dimension_numbers")
        return lax.conv_general_dilated(
            x,
            kernel,
            **{name: conv.params[name] for name in names},
            feature_group_count=conv.params["feature_group_count"],
            precision=conv.params["precision"],
            preferred_element_type=dtype,
        )

    def ragged(self, ragged: Ragged) -> Any:
        if self.kinds not in ("sio", "soi"):
            return Declined("a ragged product over other axes than those of a stack and a product")
        product = functools.partial(
            lax.ragged_dot,
            group_sizes=ragged.sizes,
            precision=ragged.precision,
            preferred_element_type=ragged.out.dtype,
        )
        sides = (self.A, self.B) if self.kinds == "sio" else (self.B, self.A)
        first, second = (factor.astype(ragged.x.dtype) for factor in sides)
        low = product(ragged.x, first.transpose(1, 2, 0))
        return product(ragged.x, self.base) + product(
            low.astype(ragged.x.dtype), second.transpose(1, 0, 2)
        )

    def scanned(self) -> tuple[Any, Callable[[Any], "Factored"]]:
        kind = self.kinds[0]
        factors = {"A": (self.A, "is"), "B": (self.B, "os")}
        moving = {n: jnp.moveaxis(f, 1, 0) for n, (f, has) in factors.items() if kind in has}
        fixed = {name: f for name, (f, has) in factors.items() if kind not in has}

        def one(arrays: Any) -> Factored:
            base, factors = arrays
            return self._with(base, **fixed, **factors, kinds=self.kinds[1:])

        return (self.base, moving), one

    def specs(self, spec: PartitionSpec) -> Any:
        over = [*spec, *[None] * (self.ndim - len(spec))]

        def of(has: str) -> PartitionSpec:
            cut = (axes for axes, kind in zip(over, self.kinds, strict=True) if kind in has)
            return PartitionSpec(None, *cut)

        return jax.tree.unflatten(jax.tree.structure(self), [spec, of("is"), of("os")])

    def _with(self, base: Array, A: Array, B: Array, kinds: str) -> "Factored":
        return Factored(base, A, B, kinds, self.name)

    def _names(self, has: str, names: str) -> str:
        """The names of the axes of a factor, for those of the view."""
        return _RANK + _of_kind(has, names, self.kinds)


def _of_kind(has: str, names: str, kinds: str) -> str:
    return "".join(name for name, kind in zip(names, kinds, strict=True) if kind in has)


def _part(array: Array, start: Any, size: int, axis: int) -> Array:
    if isinstance(start, int):
        return lax.slice_in_dim(array, start, start + size, axis=axis)
    return lax.dynamic_slice_in_dim(array, start, size, axis)


def _is_plain(precision: Any) -> bool:
    one = precision[0] if isinstance(precision, tuple) else precision
    return one is None or isinstance(one, lax.Precision)


def _cast(array: Array, dtype: Any) -> Array:
    return lax.convert_element_type(array, dtype)  # traces faster than `astype`
