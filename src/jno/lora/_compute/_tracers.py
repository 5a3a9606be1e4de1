"""Finding traced arrays where JAX does not look for them: in static fields and in functions.

A result that keeps one is broken as soon as its program has been compiled.
"""

import functools
from typing import Any

import jax.tree_util as jtu
from jax.core import Tracer


def static_fields_keep_tracer(treedef: Any) -> bool:
    """Whether a static field of a tree keeps a traced array."""
    data = treedef.node_data()
    return data is not None and (
        any(map(keeps_tracer, jtu.tree_leaves(data[1])))
        or any(map(static_fields_keep_tracer, treedef.children()))
    )


def keeps_tracer(value: Any) -> bool:
    """Whether `value` is a traced array, or a function that keeps one: in a closure, a default."""
    seen: set[int] = set()
    rest = [value]
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
            inner = (getattr(one, name, None) for name in ("__wrapped__", "__self__"))
            rest += [*map(_content, cells), *defaults, *inner]
        elif isinstance(one, tuple | list | dict):
            rest += jtu.tree_leaves(one)
    return False


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return None
