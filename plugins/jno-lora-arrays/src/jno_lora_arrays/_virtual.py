"""Virtual weights: what a function sees in the place of the weight of an adapted layer."""

import functools
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec
from jaxtyping import Array

from ._factored import Factored
from ._kinds import axes_of, factors_of, is_known, weight_of
from ._views import Conv, Declined, Dot, View
from ._whole import whole_view


class Term(NamedTuple):
    """A multiple of a view. The factor `None` is one."""

    factor: Any
    view: View

    def times(self, value: Any) -> Any:
        """`value`, times the factor."""
        if self.factor is None:
            return value
        factor, value = jnp.asarray(self.factor), jnp.asarray(value)
        dtype = np.promote_types(factor.dtype, value.dtype)
        return factor.astype(dtype) * value.astype(dtype)


class Virtual(eqx.Module):
    """A sum of multiples of views, in some dtype, which may be a complex one."""

    terms: tuple[Term, ...]
    dtype: Any = eqx.field(static=True)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape, which all terms have."""
        return self.terms[0].view.shape

    @property
    def name(self) -> str:
        """The adapter in reports."""
        return " + ".join(dict.fromkeys(term.view.name for term in self.terms))

    @property
    def only_watches(self) -> bool:
        """As the views' own."""
        return self.terms[0].view.only_watches

    @property
    def is_one_view(self) -> bool:
        """Whether this is one view, and not a multiple or a sum."""
        return len(self.terms) == 1 and self.terms[0].factor is None

    def dense(self) -> Array:
        """The merged weight."""
        values = (term.times(term.view.dense()).astype(self.dtype) for term in self.terms)
        return functools.reduce(operator.add, values)

    def each(self, f: Callable[[View], Any]) -> Any:
        """With `f` of each view in its place, or the sum of the values that it gives.

        `Declined` if one of them declines.
        """
        found = [f(term.view) for term in self.terms]
        if not all(isinstance(one, View) for one in found):
            arrays = [one.dense() if isinstance(one, View) else one for one in found]
            return self.values(lambda view: arrays.pop(0), self.dtype)
        terms = (Term(t.factor, view) for t, view in zip(self.terms, found, strict=True))
        return Virtual(tuple(terms), self.dtype)

    def values(self, f: Callable[[View], Any], dtype: Any) -> Any:
        """The sum of the values that `f`, which is linear, gives for each view."""
        found = [f(term.view) for term in self.terms]
        declined = next((one for one in found if isinstance(one, Declined)), None)
        if declined is not None:
            return declined
        values = (t.times(value) for t, value in zip(self.terms, found, strict=True))
        return functools.reduce(operator.add, values).astype(dtype)

    def cast(self, dtype: Any) -> Any:
        """In another dtype. Views stay real."""
        if jnp.issubdtype(dtype, jnp.complexfloating):
            return Virtual(self.terms, dtype)
        if not jnp.issubdtype(dtype, jnp.floating) or jnp.iscomplexobj(jnp.zeros((), self.dtype)):
            return Declined("cast to another kind of number")
        cast = self.each(lambda view: view.cast(dtype))
        return Virtual(cast.terms, dtype)

    def scaled(self, factor: Any, dtype: Any) -> "Virtual":
        """Times a number."""
        terms = (
            Term(factor if term.factor is None else term.times(factor), term.view)
            for term in self.terms
        )
        return Virtual(tuple(terms), dtype)

    def negated(self) -> "Virtual":
        """Times minus one."""
        return self.scaled(np.array(-1, self.dtype), self.dtype)

    def plus(self, other: Any, dtype: Any) -> Any:
        """With another virtual weight, or an array of this shape, added."""
        if isinstance(other, Virtual):
            return Virtual((*self.terms, *other.terms), dtype)
        last = self.terms[-1]
        is_negated = type(last.factor) is np.ndarray and last.factor == -1
        is_plain = last.factor is None or is_negated
        if not is_plain or jnp.shape(other) != self.shape or other.dtype != last.view.dtype:
            return Declined("added to an array")
        total = last.view.plus(-other if is_negated else other)
        if isinstance(total, Declined):
            return total
        return Virtual((*self.terms[:-1], Term(last.factor, total)), dtype)

    def scanned(self) -> tuple[Any, Callable[[Any], "Virtual"]] | None:
        """Arrays to scan over, and the virtual weight of their slices."""
        found = [term.view.scanned() for term in self.terms]
        if any(one is None for one in found):
            return None
        arrays, parts = zip(*found, strict=True)

        def one(arrays: Any) -> Virtual:
            views = (part(own) for part, own in zip(parts, arrays, strict=True))
            terms = (Term(t.factor, view) for t, view in zip(self.terms, views, strict=True))
            return Virtual(tuple(terms), self.dtype)

        return arrays, one

    def specs(self, spec: PartitionSpec) -> Any:
        """The shardings of all arrays, for that of the weight; `None` if a view has none."""
        found = [term.view.specs(spec) for term in self.terms]
        if any(one is None for one in found):
            return None
        leaves: list[Any] = []
        for term, specs in zip(self.terms, found, strict=True):
            leaves += [PartitionSpec()] * len(jax.tree.leaves(term.factor))
            leaves += jax.tree.leaves(specs, is_leaf=lambda x: isinstance(x, PartitionSpec))
        return jax.tree.unflatten(jax.tree.structure(self), leaves)

    def product(self, use: Dot | Conv) -> Any:
        """The values of a product or convolution, whose other side may be complex."""
        name = "dot" if isinstance(use, Dot) else "conv"
        dtype = use.out.dtype
        if not jnp.issubdtype(dtype, jnp.complexfloating):
            return self.values(lambda view: getattr(view, name)(use), dtype)
        # Two real products for each view, which is real.
        real = jax.ShapeDtypeStruct(use.out.shape, jnp.zeros((), dtype).real.dtype)

        def both(view: View) -> Any:
            sides = (use.x.real, use.x.imag) if jnp.iscomplexobj(use.x) else (use.x,)
            parts = [getattr(view, name)(use._replace(x=x, out=real)) for x in sides]
            declined = next((one for one in parts if isinstance(one, Declined)), None)
            if declined is not None:
                return declined
            return jax.lax.complex(*parts) if len(parts) == 2 else parts[0].astype(dtype)

        return self.values(both, dtype)


def virtual(adapter: Any) -> Virtual | None:
    """The weight of an adapter, if the products with it are known."""
    if not is_known(adapter):
        return None
    name, axes = type(adapter).__name__, axes_of(adapter)
    weight, factors = weight_of(adapter.base), factors_of(adapter)
    if factors is None:
        return of_view(whole_view(adapter, axes, weight.dtype, name))

    # The factors along the axes of the weight, the rank first: the stack is in front of each.
    def arranged(factor: Array, letter: str) -> Array:
        sides = [place for place, (own, _) in enumerate(axes) if own == letter]
        stack = [place for place, (own, _) in enumerate(axes) if own == "s"]
        sizes = [axes[place][1] for place in (*stack, *sides)]
        stored = [*stack, *sides]
        factor = jax.lax.reshape(factor, (factor.shape[0], *sizes))
        order = [0, *(1 + stored.index(place) for place in sorted(stored))]
        return factor if order == sorted(order) else jax.lax.transpose(factor, order)

    *stack, rank, other = range(factors.A.ndim)
    A = factors.A if not stack else jax.lax.transpose(factors.A, [rank, *stack, other])
    B = jax.lax.transpose(factors.B, [other, *stack, rank])
    kinds = "".join(letter for letter, _ in axes)
    return of_view(Factored(weight, arranged(A, "i"), arranged(B, "o"), kinds, name))


def of_view(view: View) -> Virtual:
    """A virtual weight that is this view."""
    return Virtual((Term(None, view),), view.dtype)


def dense(value: Any) -> Any:
    """The array itself, if `value` is a virtual weight."""
    return value.dense() if isinstance(value, Virtual) else value
