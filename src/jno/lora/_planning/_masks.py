"""Masks and regexes, which select leaves and so layers."""

import re
from collections.abc import Callable
from typing import Any, TypeAlias

import equinox as eqx
import jax.tree_util as jtu
import numpy as np
from jaxtyping import PyTree

from .._errors import SelectionError
from .._paths import KeyPath, path_str, show_path

MaskLike: TypeAlias = PyTree | str | re.Pattern[str]
Selector: TypeAlias = Callable[[KeyPath], bool]  # whether a mask selects the node at a key path


def compiled(pattern: Any, argument: str) -> re.Pattern[str]:
    """`pattern` compiled. **Raises:** `SelectionError` that names the argument."""
    if not isinstance(pattern, str | re.Pattern):
        raise SelectionError(
            f"`{argument}` must be a regex (a string), a list of names that paths end in, or "
            f'"all-linear", but is {pattern!r}.'
        )
    try:
        return re.compile(pattern)
    except re.error as err:
        raise SelectionError(
            f"`{argument}` is not a valid regex: {pattern!r}: {err}. It is searched in paths such "
            "as 'encoder/layers/0'. Escape special characters with a backslash."
        ) from err


def selector(model: PyTree, mask: MaskLike | None) -> Selector:
    """A function that returns whether a leaf is selected in the node of `model` at a key path."""
    if mask is None:
        return lambda keys: True
    leaves = jtu.tree_leaves_with_path(parse_mask(model, mask))
    selected = [keys for keys, is_selected in leaves if is_selected]
    nodes_around = {keys[:n] for keys in selected for n in range(len(keys) + 1)}
    return lambda keys: keys in nodes_around


def parse_mask(model: PyTree, mask: MaskLike) -> PyTree[bool]:
    """A mask as Python bools in the exact structure of `model`.

    - `mask`: bools in the structure of `model` or of a prefix of it (one bool for a whole
        subtree), or a regex that is searched in the path of every leaf.

    **Raises:** `SelectionError` that names the path at which the structures differ, or the leaf
    that is not a bool.
    """
    if isinstance(mask, str | re.Pattern):
        pattern = compiled(mask, "mask")
        return jtu.tree_map_with_path(lambda keys, _: bool(pattern.search(path_str(keys))), model)
    # `None` selects nothing. `eqx.filter` puts it in the place of leaves that are not arrays.
    leaves, treedef = jtu.tree_flatten_with_path(mask, is_leaf=lambda node: node is None)
    for keys, leaf in leaves:
        is_bool = getattr(leaf, "shape", None) == () and getattr(leaf, "dtype", None) == np.bool_
        if not (leaf is None or isinstance(leaf, bool) or is_bool):
            value = repr(leaf) if len(repr(leaf)) < 60 else f"a {type(leaf).__name__}"
            raise SelectionError(
                f"A mask has one bool per leaf (or subtree), but has {value} at "
                f"{show_path(path_str(keys))!r}. To select whole layers by name, give a regex: "
                '.mask("encoder")'
            )
    try:
        subtrees = treedef.flatten_up_to(model)
    except ValueError as err:
        raise SelectionError(_mismatch(model, mask)) from err
    bools: list[bool] = []
    for (_, value), subtree in zip(leaves, subtrees, strict=True):
        subtree_leaves = jtu.tree_leaves(subtree)
        if value is None and any(map(eqx.is_array, subtree_leaves)):
            raise SelectionError(_mismatch(model, mask))
        bools += [bool(value)] * len(subtree_leaves)
    return jtu.tree_unflatten(jtu.tree_structure(model), bools)


def _mismatch(model: PyTree, mask: PyTree) -> str:
    model_paths, mask_paths = (
        [f"{path_str(keys)}/" for keys, _ in jtu.tree_leaves_with_path(tree)]
        for tree in (model, mask)
    )
    # A leaf of the mask may stand for a whole subtree of the model.
    odd = [path for path in mask_paths if not any(p.startswith(path) for p in model_paths)]
    odd += [path for path in model_paths if not path.startswith(tuple(mask_paths))]
    where = f", at {show_path(odd[0][:-1])!r}" if odd else " (a class or a static field differs)"
    return (
        f"The mask has another structure than the model{where}. Build it from the model as it "
        "is now:\n"
        "    mask = jax.tree.map(lambda _: False, net.module)\n"
        "    mask = eqx.tree_at(lambda m: m.encoder, mask, True)\n"
        'or give a regex on paths: .mask("encoder")'
    )
