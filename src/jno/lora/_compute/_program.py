"""Calling a function on layers of few forms: each form is compiled once.

Thousands of small operations, one after the other, are what makes adapting a large model slow.
Layers of one form (class, static fields, shapes, dtypes, device) share a program, which also
spares the memory of intermediate results (a float32 copy of a weight).
"""

import logging
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jax import lax
from jaxtyping import Array

from .._caches import remembered
from ._lapack import decomposes, one_blas_thread
from ._signature import Form, TracedError, form_of, holds_traced, keeps_traced

_log = logging.getLogger("jno.lora")

# How many layers one run of a program computes together, and up to which size of each: what is
# larger gains nothing, and would be copied.
TOGETHER = 64
_SMALL = 64 * 1024  # bytes


def call_compiled(function: Callable[..., Any], *args: Any) -> Any:
    """`function(*args)`, by a program that is kept for arguments of the same form.

    What the function hands through (the weights of a base) comes back as the object it was. Traced
    arguments, and a function that cannot be compiled since it needs the values of arrays, are
    called as they are.

    **Arguments:**

    - `function`: hashable, and pure.
    - `args`: pytrees of arrays and of hashable values.
    """

    def compiled() -> Any:
        form, arrays = form_of(args)
        return program_for(function, _NOTHING, form).alone([], arrays)

    return attempt(compiled, lambda: function(*args))


def attempt(compiled: Callable[[], Any], plain: Callable[[], Any]) -> Any:
    """What `compiled()` returns or, if it fails, `plain()`."""
    try:
        return compiled()
    except jax.errors.JaxRuntimeError as err:
        if "RESOURCE_EXHAUSTED" in str(err):
            raise  # run operation by operation, it would need more memory still
    except Exception as err:
        _log.debug("%s, so a layer is not computed by a program: %s", type(err).__name__, err)
    # If it is the function that fails, it fails again, and with a traceback of its own.
    return plain()


class _Given(NamedTuple):
    """In a result: the array at that place among the arguments."""

    place: int


_ARRAY = object()
_NOTHING, _ = form_of(())


def program_for(function: Callable[..., Any], shared: Form, own: Form) -> "Program":
    """The program of `function(*shared, *own)` for trees of these forms.

    **Raises:** whatever `function` does when it is traced; `TypeError` for what is not hashable.
    """
    widest = jax.dtypes.canonicalize_dtype(float)  # whether 64 bits are enabled
    return _program(function, shared, own, widest)


@remembered(512)
def _program(function: Callable[..., Any], shared: Form, own: Form, widest: Any) -> "Program":
    return Program(function, shared, own)


class Program:
    """`function(*shared, *own)`, compiled for arrays of these forms."""

    def __init__(self, function: Callable[..., Any], shared: Form, own: Form):
        self.function, self.shared, self.own = function, shared, own
        self.treedef: Any = None  # of the result
        self.leaves: tuple[Any, ...] = ()  # of the result: what to take from where
        traced = jax.make_jaxpr(self._compute)(shared.abstract(), own.abstract())
        self.computed = traced.out_avals
        live = _live(traced.jaxpr)[len(shared.arrays) :]
        self.needed = [index for index, is_live in enumerate(live) if is_live]
        self.is_small = self._is_small()
        self._one = jax.jit(self._compute, out_shardings=own.home)
        self._loop = jax.jit(self._compute_many, out_shardings=own.home)
        self._decomposes = decomposes(traced.jaxpr)

    def alone(self, shared: list[Any], own: list[Any]) -> Any:
        """The result for one layer."""
        computed = self._run(self._one, shared, own) if self.computed else ()
        return self._result(shared, own, computed)

    def together(self, shared: list[Any], owns: Sequence[list[Any]]) -> list[Any]:
        """The results for up to `TOGETHER` small layers."""
        if not self.computed:
            return [self.alone(shared, own) for own in owns]
        # By way of the host, since thousands of arguments would have to be compiled for.
        rows = [_stacked([own[index] for own in owns]) for index in self.needed]
        computed = self._run(self._loop, shared, rows, len(owns))
        return [self._result(shared, own, _row(computed, i)) for i, own in enumerate(owns)]

    def _run(self, compiled: Callable[..., list[Array]], *args: Any) -> list[Array]:
        if not self._decomposes:
            return compiled(*args)
        with one_blas_thread():
            return jax.block_until_ready(compiled(*args))

    def _is_small(self) -> bool:
        # Keys cannot be stacked by way of the host, and a stack is never of a weak type.
        if any(
            jnp.issubdtype(x.dtype, jax.dtypes.extended) or x.weak_type
            for x in (*self.own.arrays, *self.computed)
        ):
            return False
        moved = [*(self.own.arrays[index] for index in self.needed), *self.computed]
        return sum(math.prod(x.shape) * x.dtype.itemsize for x in moved) <= _SMALL

    def _result(self, shared: list[Any], own: list[Any], computed: Iterable[Any]) -> Any:
        given, rest = (*shared, *own), iter(computed)
        leaves = [
            given[leaf.place] if type(leaf) is _Given else next(rest) if leaf is _ARRAY else leaf
            for leaf in self.leaves
        ]
        return jtu.tree_unflatten(self.treedef, leaves)

    def _compute(self, shared: list[Array], own: list[Array]) -> list[Array]:
        """The arrays of the result that are not among the arguments."""
        args = (*self.shared.tree_of(shared), *self.own.tree_of(own))
        index = {id(array): i for i, array in enumerate((*shared, *own))}
        leaves, self.treedef = jtu.tree_flatten(self.function(*args))
        others = (leaf for leaf in leaves if not eqx.is_array(leaf))
        if holds_traced(self.treedef) or any(map(keeps_traced, others)):
            raise TracedError("an array was put into a static field or a function")
        self.leaves = tuple(
            _Given(index[id(x)]) if id(x) in index else _ARRAY if eqx.is_array(x) else x
            for x in leaves
        )
        return [x for x, kind in zip(leaves, self.leaves, strict=True) if kind is _ARRAY]

    def _compute_many(self, shared: list[Array], rows: list[Array], number: Array) -> list[Array]:
        """`_compute` for each of the first `number` rows.

        One after the other: what is computed for a layer must not depend on those beside it, and
        the time goes into starting programs, not into their arithmetic.
        """

        def compute(i: Array, results: list[Array]) -> list[Array]:
            # What no result depends on is not handed over, but must be there.
            own = [jnp.zeros(x.shape, x.dtype) for x in self.own.arrays]
            for index, row in zip(self.needed, rows, strict=True):
                own[index] = lax.dynamic_index_in_dim(row, i, keepdims=False)
            computed = self._compute(shared, own)
            return [
                lax.dynamic_update_index_in_dim(result, x, i, 0)
                for result, x in zip(results, computed, strict=True)
            ]

        empty = [jnp.zeros((TOGETHER, *x.shape), x.dtype) for x in self.computed]
        return lax.fori_loop(0, number, compute, empty)


def _live(jaxpr: Any) -> list[bool]:
    """Whether a result depends on each of the arguments."""
    live = {id(x) for x in jaxpr.outvars}
    for equation in reversed(jaxpr.eqns):
        if equation.effects or any(id(x) in live for x in equation.outvars):
            live.update(map(id, equation.invars))
    return [id(x) in live for x in jaxpr.invars]


def _stacked(arrays: list[Any]) -> np.ndarray:
    """The arrays along a new first axis, filled up to `TOGETHER`."""
    for array in arrays:
        if isinstance(array, jax.Array):
            array.copy_to_host_async()
    rows = np.zeros((TOGETHER, *arrays[0].shape), arrays[0].dtype)
    for place, array in enumerate(arrays):
        rows[place] = array
    return rows


@jax.jit
def _row(arrays: list[Array], i: Array) -> list[Array]:
    return [lax.dynamic_index_in_dim(x, i, keepdims=False) for x in arrays]
