"""The form of a tree: what it has in common with those that may share a compiled program.

Class, static fields, shapes, dtypes and devices; not the values of arrays.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.tree_util as jtu
import numpy as np
from jax.core import Tracer
from jax.sharding import NamedSharding, Sharding, SingleDeviceSharding


class ArrayForm(NamedTuple):
    """What a program is compiled for, of an array."""

    shape: tuple[int, ...]
    dtype: Any
    weak_type: bool
    # Where it lies (`None` for NumPy's), and whether it must stay there.
    sharding: Sharding | None
    committed: bool


class Form(NamedTuple):
    """What trees have in common that may share a program."""

    treedef: Any
    exactly: Any
    # Of each leaf: the form of an array, or the type and value (1 equals 1.0) of what is none.
    leaves: tuple[Any, ...]

    @property
    def arrays(self) -> list[ArrayForm]:
        """The forms of the arrays."""
        return [leaf for leaf in self.leaves if type(leaf) is ArrayForm]

    @property
    def is_sharded(self) -> bool:
        """Whether an array is laid out over a mesh."""
        return any(isinstance(array.sharding, NamedSharding) for array in self.arrays)

    @property
    def home(self) -> SingleDeviceSharding | None:
        """The one device that the arrays must stay on, if there is one."""
        for array in self.arrays:
            if array.committed and isinstance(array.sharding, SingleDeviceSharding):
                (device,) = array.sharding.device_set
                return SingleDeviceSharding(device)
        return None

    def tree_of(self, arrays: list[Any]) -> Any:
        """A tree of this form that holds these arrays."""
        given = iter(arrays)
        leaves = [next(given) if type(leaf) is ArrayForm else leaf[1] for leaf in self.leaves]
        return jtu.tree_unflatten(self.treedef, leaves)

    def abstract(self) -> list[jax.ShapeDtypeStruct]:
        """The arrays' shapes and dtypes, to trace with."""
        return [jax.ShapeDtypeStruct(x.shape, x.dtype, weak_type=x.weak_type) for x in self.arrays]


def beside(leaf: Any, form: Form) -> Any:
    """`leaf`, moved to the device of a tree of this form if it must not stay where it is.

    (A key that was replicated over a mesh, or committed to another device.)
    """
    anchor = next((array for array in form.arrays if array.sharding is not None), None)
    if anchor is None or anchor.sharding is None or not isinstance(leaf, jax.Array):
        return leaf
    there = leaf.sharding.device_set
    if there == anchor.sharding.device_set or (len(there) == 1 and not anchor.committed):
        return leaf
    return jax.device_put(leaf, anchor.sharding)


class TracedError(Exception):
    """A tree holds traced arrays where only others can be."""


def form_of(tree: Any) -> tuple[Form, list[Any]]:
    """The form of `tree`, which may turn out not to be hashable, and its arrays.

    **Raises:** `TracedError` if an array is traced.
    """
    leaves, treedef = jtu.tree_flatten(tree)
    arrays: list[Any] = []
    forms: list[Any] = []
    for leaf in leaves:
        cls = type(leaf)
        read = _reader(cls)
        forms.append((cls, leaf) if read is None else read(leaf))
        if read is not None:
            arrays.append(leaf)
    return Form(treedef, _exactly(treedef), tuple(forms)), arrays


def holds_traced(treedef: Any) -> bool:
    """Whether a static field is a traced array, or holds some."""
    data = treedef.node_data()
    return data is not None and (
        any(map(keeps_traced, jtu.tree_leaves(data[1])))
        or any(map(holds_traced, treedef.children()))
    )


def keeps_traced(leaf: Any) -> bool:
    """Whether this is a traced array, or a function that keeps one: in a closure, a default, ..."""
    seen: set[int] = set()
    rest = [leaf]
    while rest:
        one = rest.pop()
        if isinstance(one, Tracer):
            return True
        if id(one) in seen:
            continue
        seen.add(id(one))
        if isinstance(one, functools.partial):
            rest += [one.func, *one.args, *one.keywords.values()]
        elif callable(one) and not isinstance(one, type):
            cells = getattr(one, "__closure__", None) or ()
            defaults = getattr(one, "__defaults__", None) or ()
            kept = (getattr(one, name, None) for name in ("__wrapped__", "__self__"))
            rest += [*map(_content, cells), *defaults, *kept]
        elif isinstance(one, tuple | list | dict):
            rest += jtu.tree_leaves(one)
    return False


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return None


@functools.lru_cache(maxsize=256)
def _reader(cls: type) -> Callable[[Any], ArrayForm] | None:
    """How to read the form of an array of this class; `None` if it is no class of arrays."""
    if issubclass(cls, Tracer):
        return _traced
    if issubclass(cls, jax.Array):
        return _of_jax
    return _of_numpy if issubclass(cls, np.ndarray | np.generic) else None


def _traced(array: Any) -> ArrayForm:
    raise TracedError


def _of_jax(x: Any) -> ArrayForm:
    return ArrayForm(x.shape, x.dtype, getattr(x, "weak_type", False), x.sharding, x.committed)


def _of_numpy(x: Any) -> ArrayForm:
    return ArrayForm(x.shape, jax.dtypes.canonicalize_dtype(x.dtype), False, None, False)


def _exactly(treedef: Any) -> Any:
    """What tells static fields apart that are equal: 1, 1.0, True and a member of an `IntEnum`.

    The result of a program has the static fields of the call that made it.
    """
    data = treedef.node_data()
    return data and (_typed(data[1]), *map(_exactly, treedef.children()))


def _typed(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return (type(value), *map(_typed, value))
    return (type(value), repr(value)) if isinstance(value, float) else type(value)
