"""Finding traced arrays where JAX does not look for them: in static fields and in functions.

A result that keeps a traced array is broken as soon as its program has been compiled.
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
    queue = [value]
    while queue:
        item = queue.pop()
        if isinstance(item, Tracer):
            return True
        if id(item) in seen:
            continue
        seen.add(id(item))
        if isinstance(item, functools.partial):
            queue += [item.func, *item.args, *item.keywords.values()]
        elif callable(item) and not isinstance(item, type):
            cells = getattr(item, "__closure__", None) or ()
            defaults = getattr(item, "__defaults__", None) or ()
            inner = (getattr(item, name, None) for name in ("__wrapped__", "__self__"))
            queue += [*map(_content, cells), *defaults, *inner]
        elif isinstance(item, tuple | list | dict):
            queue += jtu.tree_leaves(item)
    return False


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return None
