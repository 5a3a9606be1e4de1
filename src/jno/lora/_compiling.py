"""Calling a function on many layers of few forms: each form is compiled once.

Thousands of small operations, one after the other, are what makes adapting a large model slow.
Layers of one form (class, static fields, shapes, dtypes) share a program, which also spares the
memory of intermediate results (a float32 copy of a weight).
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.tree_util as jtu
from jax.core import Tracer
from jaxtyping import Array


def call_compiled(function: Callable[..., Any], *args: Any) -> Any:
    """`function(*args)`, by a program that is kept for arguments of the same form.

    What the function hands through (the weights of a base) comes back as the object it was. Traced
    arguments, and a function that cannot be compiled since it needs the values of arrays, are
    called as they are.

    **Arguments:**

    - `function`: hashable, and pure.
    - `args`: pytrees of arrays and of hashable values.
    """
    leaves, treedef = jtu.tree_flatten(args)
    arrays = [leaf for leaf in leaves if eqx.is_array(leaf)]
    if any(isinstance(array, Tracer) for array in arrays):
        return function(*args)
    statics = tuple((_Array, _ARRAY) if eqx.is_array(x) else (type(x), x) for x in leaves)
    avals = tuple(map(jax.typeof, arrays))
    floating = jax.dtypes.canonicalize_dtype(float)
    try:
        form = _Form(function, treedef, _exactly(treedef), statics, avals, floating)
        return _program(form)(arrays)
    except jax.errors.JaxRuntimeError as err:
        if "RESOURCE_EXHAUSTED" in str(err):
            raise  # run operation by operation, it would need more memory still
    except Exception:
        pass
    # If it is the function that fails, it fails again, and with a traceback of its own.
    return function(*args)


@dataclasses.dataclass(frozen=True)
class _Form:
    """What calls that share a program have in common."""

    function: Callable[..., Any]
    treedef: Any
    exactly: Any
    # The leaves that are no arrays, with their types (1 equals 1.0), and `_ARRAY` in their place.
    statics: tuple[tuple[type, Any], ...]
    avals: tuple[Any, ...]
    floating: Any  # the widest type: whether 64 bits are enabled


def _exactly(treedef: Any) -> Any:
    """What tells static fields apart that are equal: 1, 1.0, True and a member of an `IntEnum`.

    The result of a program has the static fields of the call that made it.
    """
    data = treedef.node_data()
    return (_typed(None if data is None else data[1]), *map(_exactly, treedef.children()))


def _typed(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return (type(value), *map(_typed, value))
    return (type(value), repr(value)) if isinstance(value, float) else type(value)


class _Array:
    pass


@dataclasses.dataclass(frozen=True)
class _Given:
    """In a result: the array of that index among the arguments."""

    index: int


_ARRAY = _Array()


@functools.lru_cache(maxsize=512)
def _program(form: _Form) -> "_Program":
    return _Program(form)


class _Program:
    """`form.function`, compiled for arguments of that form."""

    def __init__(self, form: _Form):
        self.form = form
        self.treedef: Any = None  # of the result
        self.leaves: tuple[Any, ...] = ()  # of the result: what to take from where
        jax.eval_shape(self._compute, list(form.avals))
        self.compiled = jax.jit(self._compute)

    def __call__(self, arrays: list[Any]) -> Any:
        computed = iter(self.compiled(arrays) if _ARRAY in self.leaves else ())
        leaves = (
            arrays[leaf.index]
            if isinstance(leaf, _Given)
            else next(computed)
            if leaf is _ARRAY
            else leaf
            for leaf in self.leaves
        )
        return jtu.tree_unflatten(self.treedef, leaves)

    def _compute(self, arrays: list[Array]) -> list[Array]:
        """The arrays of the result that are not among `arrays`."""
        given = iter(arrays)
        leaves = [next(given) if leaf is _ARRAY else leaf for _, leaf in self.form.statics]
        result = self.form.function(*jtu.tree_unflatten(self.form.treedef, leaves))
        index = {id(array): i for i, array in enumerate(arrays)}
        leaves, self.treedef = jtu.tree_flatten(result)
        self.leaves = tuple(
            _Given(index[id(x)]) if id(x) in index else _ARRAY if eqx.is_array(x) else x
            for x in leaves
        )
        return [x for x, kind in zip(leaves, self.leaves, strict=True) if kind is _ARRAY]
