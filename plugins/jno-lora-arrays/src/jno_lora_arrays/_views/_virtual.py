"""Virtual weights, which stand for the weights of adapted layers in a traced function."""

import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, PyTree

from ._adapted_layers import factors_of, is_known, kinds_of, weight_of
from ._factored import factored
from ._view import Conv, DeclinedError, Dot, Result, View
from ._whole import whole_view

T = TypeVar("T", bound=ArrayLike)
# A value of the traced function: a `Virtual`, or an array or literal.
Value: TypeAlias = Any


class Term(NamedTuple):
    """A multiple of a view. The factor `None` means one."""

    factor: ArrayLike | None
    view: View

    def times(self, value: T) -> T | Array:
        if self.factor is None:
            return value
        factor, array = jnp.asarray(self.factor), jnp.asarray(value)
        dtype = np.promote_types(factor.dtype, array.dtype)
        return factor.astype(dtype) * array.astype(dtype)


class Virtual(eqx.Module):
    """A sum of multiples of views, in a dtype that may be complex."""

    terms: tuple[Term, ...]
    dtype: np.dtype = eqx.field(static=True)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.terms[0].view.shape

    @property
    def name(self) -> str:
        return " + ".join(dict.fromkeys(term.view.name for term in self.terms))

    @property
    def only_watches(self) -> bool:
        return self.terms[0].view.only_watches

    @property
    def is_one_view(self) -> bool:
        """Whether this is a single view, not a multiple or a sum."""
        return len(self.terms) == 1 and self.terms[0].factor is None

    def dense(self) -> Array:
        values = (term.times(term.view.dense()).astype(self.dtype) for term in self.terms)
        return functools.reduce(operator.add, values)

    def each(
        self, f: Callable[[View], Result], dtype: DTypeLike | None = None
    ) -> "Virtual | Array":
        """Replace each view by `f(view)`, for a linear `f`.

        If `f` returns arrays, return their sum in `dtype`, by default the dtype of the weight.
        """
        results = [f(term.view) for term in self.terms]
        views = [result for result in results if isinstance(result, View)]
        if len(views) == len(results):
            return self._with_views(views, self.dtype)
        terms = zip(self.terms, map(dense, results), strict=True)
        total = functools.reduce(operator.add, (term.times(array) for term, array in terms))
        return total.astype(self.dtype if dtype is None else dtype)

    def cast(self, dtype: np.dtype) -> "Virtual":
        """In another dtype. Views stay real."""
        if jnp.issubdtype(dtype, jnp.complexfloating):
            return Virtual(self.terms, dtype)
        if not jnp.issubdtype(dtype, jnp.floating) or jnp.iscomplexobj(jnp.zeros((), self.dtype)):
            raise DeclinedError("cast to another kind of number")
        return self._with_views([term.view.cast(dtype) for term in self.terms], dtype)

    def scaled(self, factor: ArrayLike, dtype: np.dtype) -> "Virtual":
        terms = tuple(Term(term.times(factor), term.view) for term in self.terms)
        return Virtual(terms, dtype)

    def negated(self) -> "Virtual":
        return self.scaled(np.array(-1, self.dtype), self.dtype)

    def plus(self, addend: "Virtual", dtype: np.dtype) -> "Virtual":
        return Virtual((*self.terms, *addend.terms), dtype)

    def scanned(self) -> tuple[PyTree, Callable[[PyTree], "Virtual"]]:
        arrays, slices = zip(*(term.view.scanned() for term in self.terms), strict=True)

        def slice_of(arrays: PyTree) -> Virtual:
            views = [view_of(x) for view_of, x in zip(slices, arrays, strict=True)]
            return self._with_views(views, self.dtype)

        return arrays, slice_of

    def specs(self, spec: PartitionSpec) -> "Virtual | None":
        """The sharding of every array, given the weight's; `None` if a view has none."""
        every = [term.view.specs(spec) for term in self.terms]
        view_specs = [specs for specs in every if specs is not None]
        if len(view_specs) < len(every):
            return None
        factors = [jax.tree.map(lambda _: PartitionSpec(), term.factor) for term in self.terms]
        return Virtual(tuple(map(Term, factors, view_specs)), self.dtype)

    def product(self, use: Dot | Conv) -> "Virtual | Array":
        """The values of a product or convolution, whose array may be complex."""
        dtype = use.out.dtype
        if not jnp.issubdtype(dtype, jnp.complexfloating):
            return self.each(lambda view: view.product(use), dtype)
        # Each view is real, so a complex product is two real products.
        real = jax.ShapeDtypeStruct(use.out.shape, jnp.zeros((), dtype).real.dtype)
        arrays = (use.x.real, use.x.imag) if jnp.iscomplexobj(use.x) else (use.x,)

        def complex_product(view: View) -> Array:
            products = [view.product(use._replace(x=x, out=real)) for x in arrays]
            return jax.lax.complex(*products) if len(products) == 2 else products[0].astype(dtype)

        return self.each(complex_product, dtype)

    def _with_views(self, views: Sequence[View], dtype: np.dtype) -> "Virtual":
        terms = (Term(term.factor, view) for term, view in zip(self.terms, views, strict=True))
        return Virtual(tuple(terms), dtype)


def virtual(adapter: object) -> Virtual | None:
    """The weight of an adapter, if the products with it are known."""
    if not is_known(adapter):
        return None
    name, weight, kinds = type(adapter).__name__, weight_of(adapter.base), kinds_of(adapter)
    factors = factors_of(adapter)
    if factors is None:
        return of_view(whole_view(name, weight, adapter, kinds), weight.dtype)
    return of_view(factored(name, weight, *factors, kinds), weight.dtype)


def of_view(view: View, dtype: np.dtype) -> Virtual:
    return Virtual((Term(None, view),), dtype)


def dense(value: Value) -> Value:
    """The array that a virtual weight or a view stands for, or `value` itself."""
    return value.dense() if isinstance(value, Virtual | View) else value
