"""`declare` puts boxes around arrays, so that adapters find them; `plain` removes the boxes."""

import re
from collections.abc import Mapping
from typing import Any, TypeVar

import equinox as eqx
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np

from jno.lora import SelectionError, merge_lora
from jno.lora.extending import bullets, expect_model, nearest, path_str, show_array, show_path

from ._box import INPUTS, DeclaredArray, is_declared, unadapted
from ._infer import InferredAxes
from ._raw_node import bare_arrays, put_together

T = TypeVar("T")


def declare(params: T, axes: "Mapping[str, str] | InferredAxes") -> T:
    """Replace each array of `params` whose axes are given by a `DeclaredArray`.

    Adapters, masks, plans, files and reports then treat the array as a layer at its path. Only
    `through` and `plain` can open the box, so call your function as `through(f)(params, x)`.

    **Arguments:**

    - `params`: any pytree of arrays: the parameters of Flax or Haiku, an Equinox module, a dict.
    - `axes`: the result of `infer`; or a letter for each axis, by a regex that is searched in the
        slash-joined path of an array: `{"(query|key)/kernel": "ioo", "embedding": "eo"}`. The first
        regex that matches an array counts. `o` is an output, `i` an input, `s` an axis
        of a stack, whose slices are adapted separately, and `e` an input that is looked up by
        number, such as the words of an embedding. Letters may come in any order, and repeat.

    The box of a complex array stores the two parts as a stack of real arrays, and each part is
    adapted separately. `plain` and `through` join them again.

    **Raises:** `SelectionError`, which names the path, if a regex matches no array, or matches an
    array that has a different number of axes, is not floating or complex, or is already declared;
    and if the letters are not `o`, `i`, `s` and `e`, or if there is no input or no output.
    """
    expect_model(params, "declare")
    letters = Letters(axes)
    nodes, treedef = jtu.tree_flatten_with_path(params, is_leaf=is_declared)
    paths = [path_str(keys) for keys, _ in nodes]
    declared: list[Any] = []
    for path, (_, node) in zip(paths, nodes, strict=True):
        axis_letters = letters.of(path) if eqx.is_array_like(node) else None
        declared.append(node if axis_letters is None else boxed(node, axis_letters, path))
    letters.check_used(paths)
    return jtu.tree_unflatten(treedef, declared)


def plain(tree: T) -> T:
    """Replace the declared arrays of `tree` by bare arrays, with every adapter folded in.

    Pure and differentiable. `through(f)(*args)` computes `f(*plain(args))`. Nodes that
    `declare_raw` took apart are put together again.

    **Raises:** as `jno.lora.merge_lora`.
    """
    return put_together(bare_arrays(merge_lora(tree)))


class Letters:
    """The letters for the axes of arrays, and which of the entries have matched an array."""

    def __init__(self, axes: "Mapping[str, str] | InferredAxes"):
        if isinstance(axes, InferredAxes):
            axes = {f"^{re.escape(path)}$": letters for path, letters in axes.letters.items()}
        self.entries = {_compiled(key, letters): letters for key, letters in axes.items()}
        self.used: set[re.Pattern[str]] = set()

    def of(self, path: str) -> str | None:
        """The letters of the first entry that matches a path; `None` if no entry does."""
        for pattern, letters in self.entries.items():
            if pattern.search(path):
                self.used.add(pattern)
                return letters
        return None

    def check_used(self, paths: list[str]) -> None:
        """**Raises:** `SelectionError` if an entry has matched none of the arrays at `paths`."""
        for pattern in self.entries:
            if pattern not in self.used:
                raise SelectionError(
                    f"{pattern.pattern!r} matches no array whose axes an earlier entry has not "
                    "declared. The nearest paths are:\n"
                    f"{bullets(nearest(pattern.pattern, paths, n=5))}"
                )


def _compiled(key: Any, letters: Any) -> re.Pattern[str]:
    """The regex of an entry of `axes`. **Raises:** `SelectionError` if the entry makes no sense."""
    is_text = isinstance(letters, str) and {*letters} <= {*"ios", *INPUTS}
    if not (is_text and "o" in letters and {*letters} & {*INPUTS}):
        raise SelectionError(
            f"The axes of {key!r} must be a string of the letters o (output), i (input), s (stack) "
            "and e (input, looked up), one for each axis, with at least one output and one input, "
            f"but are {letters!r}."
        )
    try:
        return re.compile(key)
    except (re.error, TypeError) as err:
        raise SelectionError(
            f"A key of `axes` must be a regex (a string) on paths, but is {key!r}: {err}"
        ) from err


def boxed(node: Any, letters: str, path: str) -> DeclaredArray:
    if is_declared(node):
        raise SelectionError(
            f"{show_path(path)} is declared already, with the axes {unadapted(node).axes!r}. To "
            "declare it again, take `plain` of it first."
        )
    array = jnp.asarray(node) if isinstance(node, np.ndarray) else node
    if not eqx.is_inexact_array(array) or array.ndim != len(letters):
        came = show_array(array) if eqx.is_array(array) else repr(node)
        raise SelectionError(
            f"{show_path(path)} is {came}, but was declared with the axes {letters!r}: give a "
            f"floating or complex array of {len(letters)} axes, or a narrower regex."
        )
    return DeclaredArray.of(array, letters)
