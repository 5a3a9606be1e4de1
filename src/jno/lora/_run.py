"""The one way to execute functions of layers: as compiled programs, where the layers lie.

Without programs, a large model is adapted by thousands of small operations, which is slow. A
program also saves the memory of intermediate results, such as a float32 copy of a weight.
"""

import dataclasses
import functools
import logging
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.tree_util as jtu
import numpy as np
from jax.core import Tracer
from jaxtyping import PyTree

from ._caches import on_forget
from ._compute.lapack import decomposes, run_decomposition
from ._sharding import device_context, mesh_context, mesh_of, on_mesh, on_one_device

_log = logging.getLogger("jno.lora")
_ARRAYS = (jax.Array, np.ndarray, np.generic)
_AN_ARRAY = object()  # stands for an array among the leaves of a form


def run(function: Callable[..., Any], *args: Any, beside: PyTree = None) -> Any:
    """`function(*args)` by a compiled program, on the mesh or device of `beside`.

    Calls with the same static values, shapes and dtypes share a program, so a model of many layers
    needs few. An argument or an array that the function returns unchanged (the base of an adapter)
    stays the same object. The function is called without a program if arguments are traced, if
    static values cannot be hashed or compared, or if it needs the values of arrays.

    **Arguments:**

    - `function`: hashable, and pure.
    - `args`: pytrees of arrays and of hashable values.
    - `beside`: the layer on whose mesh or device to run, an item of `args` or a part of an item.
        Default: all of `args`.

    **Raises:** `FloatingPointError` if the function decomposes a matrix, and an argument contains
    NaN or infinity, for which LAPACK may never return.
    """
    leaves, treedef = jtu.tree_flatten(args)
    arrays = [leaf for leaf in leaves if isinstance(leaf, _ARRAYS)]
    if any(isinstance(array, Tracer) for array in arrays):
        return function(*args)  # the compiler of the program around this call decides
    beside = args if beside is None else beside
    mesh = mesh_of(beside)
    if mesh is None and _compiles_parts(args):
        return function(*args)
    constants = tuple(_AN_ARRAY if isinstance(leaf, _ARRAYS) else leaf for leaf in leaves)
    form = _Form(treedef, constants, f"{treedef}{constants}{[array.shape for array in arrays]}")
    if mesh is None:
        arrays = moved = on_one_device(arrays, beside)
        place = device_context(arrays)
    else:
        moved = [on_mesh(array, mesh) for array in arrays]
        place = mesh_context(mesh)
    with place:
        try:
            if _is_decomposition(function, form, moved):
                computed, result = run_decomposition(lambda: _program(function, form, moved), moved)
            else:
                computed, result = _program(function, form, moved)
        # Static values that cannot be hashed or compared, or a function that needs arrays' values.
        except (TypeError, ValueError, jax.errors.NonConcreteBooleanIndexError) as err:
            _log.debug("%s, so a layer is not computed by a program: %s", type(err).__name__, err)
            return function(*form.tree_of(moved))
    return result.tree_of(computed, given=(*args, *arrays))


class _Given(NamedTuple):
    """A leaf of a result that is an argument, or an array in an argument."""

    place: int


@jtu.register_static
@dataclasses.dataclass(frozen=True)
class _Form:
    """A tree without its arrays: the arguments, or the result, of a program.

    - `text`: of the arguments, with the shapes of their arrays. It tells 1, 1.0 and True apart,
        which compare equal.
    """

    treedef: Any
    leaves: tuple[object, ...]
    text: str = ""

    def tree_of(self, arrays: list[Any], given: tuple[object, ...] = ()) -> Any:
        """The tree with these arrays, and the arguments that it contains."""
        remaining = iter(arrays)
        leaves = [
            next(remaining) if x is _AN_ARRAY else given[x.place] if type(x) is _Given else x
            for x in self.leaves
        ]
        return jtu.tree_unflatten(self.treedef, leaves)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _program(function: Any, form: _Form, arrays: list[Any]) -> tuple[list[Any], _Form]:
    """The result: the arrays that `function` makes, so that no argument is copied, and its form."""
    args = form.tree_of(arrays)
    given = {id(x): _Given(place) for place, x in enumerate((*args, *arrays))}
    leaves, treedef = jtu.tree_flatten(function(*args), is_leaf=lambda x: id(x) in given)
    if re.search(r"Tracer\(|Traced<", str(treedef)):
        raise TypeError("a static field keeps a traced array, which is broken outside of a program")
    computed = [x for x in leaves if eqx.is_array(x) and id(x) not in given]
    items = (given.get(id(x), _AN_ARRAY if eqx.is_array(x) else x) for x in leaves)
    return computed, _Form(treedef, tuple(items))


_decompositions: dict[tuple[Any, _Form], bool] = {}
on_forget(_program.clear_cache)  # pyright: ignore[reportAttributeAccessIssue]
on_forget(_decompositions.clear)


def _is_decomposition(function: Any, form: _Form, arrays: list[Any]) -> bool:
    """Whether the program decomposes a matrix. It is traced at the first call."""
    if (function, form) not in _decompositions:
        traced = _program.trace(function, form, arrays)
        _decompositions[function, form] = decomposes(traced.jaxpr)
    return _decompositions[function, form]


def _compiles_parts(args: tuple[Any, ...]) -> bool:
    """Whether an adapter, or a class of adapters, in `args` compiles its parts itself."""
    # Of the class: an adapter would look in its layer, too, which is slow.
    classes = (arg if isinstance(arg, type) else type(arg) for arg in args)
    return any(getattr(cls, "compiles_parts", False) for cls in classes)
