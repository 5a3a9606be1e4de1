"""Folders of Orbax: the trees of Qwix, Tunix and MaxText.

Orbax is imported when a folder is read or written.
"""

import contextlib
import functools
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.tree_util as jtu
import numpy as np
from jaxtyping import PyTree

from jno.lora import PeftFormatError
from jno.lora.extending import imported_for, path_str, read_json

from ._arrays import Array, Later

# The file in the folder of a tree, and the subfolders in which libraries store the tree.
_TREE = "_METADATA"
_FOLDERS = ("", "model_params", "params", "items", "default", "state")
# Where MaxText writes the alpha, beside its trees.
_STEP = "_CHECKPOINT_METADATA"
# A tree is written in files of this size, because Orbax holds some of them in memory.
_SIZE = 2**26


def open_orbax(path: Path) -> PyTree[Array]:
    """The tree of a checkpoint, whose arrays are read when they are used.

    **Raises:** `PeftFormatError` if it cannot be read, or has a leaf that is not an array.
    """
    folder = _tree_folder(path).absolute()
    with _errors_of_orbax(path) as orbax, orbax.PyTreeCheckpointer() as checkpointer:
        tree = checkpointer.metadata(folder).item_metadata.tree
    for keys, leaf in jtu.tree_leaves_with_path(tree):
        if not hasattr(leaf, "shape"):
            raise PeftFormatError(f"{path_str(keys)} in {os.fspath(path)!r} is not an array.")

    def read(leaf: object) -> np.ndarray:
        # As a NumPy array, because the devices on which it was saved may not exist here.
        args = jax.tree.map(lambda _: orbax.RestoreArgs(restore_type=np.ndarray), tree)
        wanted = jax.tree.map(lambda x: x if x is leaf else orbax.PLACEHOLDER, tree)
        with _errors_of_orbax(path), orbax.PyTreeCheckpointer() as checkpointer:
            arrays = checkpointer.restore(folder, item=wanted, restore_args=args)
        return next(x for x in jax.tree.leaves(arrays) if x is not orbax.PLACEHOLDER)

    def later(leaf: Any) -> Later:
        return Later(tuple(leaf.shape), np.dtype(leaf.dtype), functools.partial(read, leaf))

    return jax.tree.map(later, tree)


def alpha_beside(path: Path) -> float | None:
    """The alpha that MaxText, or `save_orbax`, wrote beside a tree."""
    if not (path / _STEP).exists():
        return None
    custom = read_json(path / _STEP).get("custom_metadata") or {}
    return custom.get("lora", {}).get("lora_alpha")


def save_orbax(path: Path, arrays: Mapping[str, np.ndarray], alpha: float) -> None:
    """Save arrays as a tree, whose names have slashes, and the alpha as MaxText does."""
    with _errors_of_orbax(path) as orbax:
        _save_tree(path / "model_params", orbax.tree.from_flat_dict(arrays, sep="/"))
    (path / _STEP).write_text(json.dumps({"custom_metadata": {"lora": {"lora_alpha": alpha}}}))


def save_like(base: Path, out: Path, arrays: Mapping[str, Array]) -> None:
    """Save arrays in the tree of `base`, which has all of their names."""
    tree, folder = open_orbax(base), _tree_folder(base).relative_to(base)
    filled = jtu.tree_map_with_path(lambda keys, _: arrays.get(path_str(keys)), tree)
    has_gaps = len(arrays) < len(jax.tree.leaves(tree))
    _save_tree(out / folder, filled, has_gaps)


class _Uncopied(np.ndarray):
    """An array that Orbax saves without a copy in memory."""

    def __deepcopy__(self, memo: object) -> "_Uncopied":
        return self


def _save_tree(folder: Path, tree: PyTree[Array], has_gaps: bool = False) -> None:
    """Save the arrays of a tree, without its nodes that hold no arrays if it has gaps."""
    tree = jax.tree.map(lambda array: np.asarray(array).view(_Uncopied), tree)
    with _errors_of_orbax(folder) as orbax, orbax.PyTreeCheckpointer() as checkpointer:
        tree = orbax.tree.serialize_tree(tree) if has_gaps else tree
        checkpointer.save(folder.absolute(), tree, force=True, ocdbt_target_data_file_size=_SIZE)


def _tree_folder(path: Path) -> Path:
    """The folder of the tree in a checkpoint. **Raises:** `PeftFormatError` if it has none."""
    for name in _FOLDERS:
        if (path / name / _TREE).exists():
            return path / name
    raise PeftFormatError(
        f"{os.fspath(path)!r} has no safetensors files, and is not a checkpoint of Orbax: {_TREE} "
        f"is not in it, nor in {', '.join(_FOLDERS[1:])}. Give the folder of one step, such as "
        "'checkpoints/100'."
    )


@contextlib.contextmanager
def _errors_of_orbax(path: Path) -> Iterator[Any]:
    """Orbax, whose errors become `PeftFormatError`."""
    with imported_for("A folder of Orbax", "orbax", "orbax"):
        import orbax.checkpoint  # pyright: ignore[reportMissingImports]
    try:
        yield orbax.checkpoint
    # A damaged folder has no metadata, so `item_metadata` is `None`.
    except (OSError, ValueError, KeyError, AttributeError) as err:
        raise PeftFormatError(f"Orbax cannot read or write {os.fspath(path)!r}: {err}") from err
