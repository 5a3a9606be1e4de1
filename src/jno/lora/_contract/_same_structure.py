"""The check that a layer which comes out of an adapter looks like the one that went in."""

from typing import Any

import jax.tree_util as jtu

from .._compute import held_dtype
from .._errors import WrapperError
from .._paths import path_str, show_array


def check_same_structure(base: Any, layer: Any, what: str, *, dtypes: bool = True) -> None:
    """See that `layer`, which `what` made, has the structure, shapes and `dtypes` of `base`.

    **Raises:** `WrapperError` that shows both, and for an array its path.
    """
    before, structure = jtu.tree_flatten(base)
    after, new_structure = jtu.tree_flatten(layer)
    if structure != new_structure:
        raise WrapperError(
            f"{what} must return a layer of the structure that was wrapped, expected\n{base}\n"
            f"but got\n{layer}"
        )
    for index, (old, new) in enumerate(zip(before, after, strict=True)):
        if old is new or not hasattr(old, "dtype"):
            continue
        is_array = hasattr(new, "dtype")
        same_shape = is_array and old.shape == new.shape
        if same_shape and (not dtypes or held_dtype(old) == held_dtype(new)):
            continue
        path = path_str(jtu.tree_leaves_with_path(base)[index][0])
        came = show_array(new) if is_array else repr(new)
        raise WrapperError(
            f"{what} changes {path!r} from {show_array(old)} to {came}: keep the shape, and cast "
            "back to the base's dtype."
        )
