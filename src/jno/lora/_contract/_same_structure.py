"""A layer that comes out of an adapter must look like the one that went in."""

from typing import Any

import jax.tree_util as jtu

from .._compute import held_dtype
from .._errors import WrapperError
from .._paths import path_str, show_array


def check_same_form(base: Any, layer: Any, what: str, *, dtypes: bool = True) -> None:
    """**Raises:** `WrapperError` unless `layer`, which is `what`, has the arrays of `base`.

    That is: its structure, and the shape (and, with `dtypes`, the dtype) of each.
    """
    before, form = jtu.tree_flatten(base)
    after, new_form = jtu.tree_flatten(layer)
    if form != new_form:
        raise WrapperError(
            f"{what} must return a layer of the structure that was wrapped, expected\n{base}\n"
            f"but got\n{layer}"
        )
    for index, (old, new) in enumerate(zip(before, after, strict=True)):
        if old is new or not hasattr(old, "dtype"):
            continue
        if hasattr(new, "dtype") and old.shape == new.shape:
            same = held_dtype(old) == held_dtype(new)
            if same or not dtypes:
                continue
        path = path_str(jtu.tree_leaves_with_path(base)[index][0])
        if not hasattr(new, "dtype"):
            raise WrapperError(
                f"{what} puts {new!r} at {path!r}, where the layer has an array "
                f"{show_array(old)}: keep its shape and dtype."
            )
        raise WrapperError(
            f"{what} changes {path!r} from {show_array(old)} to {show_array(new)}: keep the shape, "
            "and cast back to the base's dtype."
        )
