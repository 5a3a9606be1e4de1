"""Learning rates by the side of a factor, or by path."""

import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import optax
from jax.core import Tracer
from jaxtyping import Array, PyTree

from jno.lora import SelectionError
from jno.lora.extending import bullets, check_number, expect_model, nearest, path_str, show_path

from ._factors import ADVICE, KeyPath, factors


def side_labels(params: PyTree) -> PyTree[str]:
    """`"input"` and `"output"` for factors on these sides of a product, `"other"` for other arrays.

    Pass the function itself to optax: `optax.multi_transform({"input": slow, "output": fast,
    "other": slow}, side_labels)`.

    **Arguments:** `params`, an adapted model, or a tree that `eqx.partition` gives.

    **Returns:** strings in the structure of `params`.

    **Raises:** `SelectionError` if `params` is a `Net` or a set.
    """
    expect_model(params, "side_labels")
    sides = {
        factor.keys: side
        for _, fields in factors(params)
        for side, factors_of_fields in fields.items()
        for factors_of_field in factors_of_fields
        for factor in factors_of_field.values()
    }
    return jtu.tree_map_with_path(lambda keys, _: sides.get(keys, "other"), params)


def path_labels(
    patterns: Mapping[str, str], default: str = "other"
) -> Callable[[PyTree], PyTree[str]]:
    """A function that labels arrays by their paths, for `optax.multi_transform`.

    Example: `optax.multi_transform({"low": optax.adam(1e-5), "other": optax.adam(1e-3)},
    path_labels({"low": "encoder/layers/[0-5]/"}))`.

    **Arguments:**

    - `patterns`: a regex for each label, searched in the slash-joined path of each array, such as
        `encoder/layers/0/lora_A`. The first match wins.
    - `default`: the label of all other arrays.

    **Returns:** a function of `params` that raises a `SelectionError` if a regex matches no path.

    **Raises:** `re.error` for an invalid regex.
    """
    regexes = {label: re.compile(pattern) for label, pattern in patterns.items()}

    def labels(params: PyTree) -> PyTree[str]:
        expect_model(params, "path_labels")
        paths = [path_str(keys) for keys, _ in jtu.tree_leaves_with_path(params)]
        for label, regex in regexes.items():
            if not any(map(regex.search, paths)):
                near = bullets(map(show_path, nearest(regex.pattern, paths))) if paths else ""
                raise SelectionError(
                    f"`patterns[{label!r}]`, {regex.pattern!r}, is found in the path of no trained "
                    f"array. The nearest paths are:\n{near}"
                )

        def label_of(keys: KeyPath, _: object) -> str:
            path = path_str(keys)
            return next((name for name, regex in regexes.items() if regex.search(path)), default)

        return jtu.tree_map_with_path(label_of, params)

    return labels


def lora_plus(
    optimiser: optax.GradientTransformation, ratio: Any = 16.0
) -> optax.GradientTransformationExtraArgs:
    """LoRA+: `optimiser` with a `ratio` times larger learning rate for output factors (`B`).

    The updates of `B` are multiplied by `ratio`, which equals a larger rate if the optimiser's
    updates are its rate times a direction that does not depend on the rate, as in SGD, Adam, AdamW
    and Lion. AdamW's decay of `B` is multiplied as well, as in the paper's code. For other
    optimisers, such as Prodigy, use `optax.multi_transform` with `side_labels`.

    **Arguments:**

    - `optimiser`: an optimiser with the rate for everything but `B`, such as `optax.adam(1e-4)`.
    - `ratio`: one positive number, which may be traced.

    **Raises:** `SelectionError` for any other `ratio`; at `init`, if no trained array is an output
    factor.

    Paper: Hayou et al., "LoRA+: Efficient Low Rank Adaptation of Large Models", arXiv:2402.12354.
    """
    check_number("ratio", ratio)
    if not isinstance(ratio, Tracer) and not ratio > 0:
        raise SelectionError(f"`ratio` must be a positive number, but is {ratio!r}.")

    def init(params: PyTree) -> optax.EmptyState:
        if "output" not in jax.tree.leaves(side_labels(params)):
            raise SelectionError(
                "lora_plus found no output factor (`lora_B`) among the arrays that train, so it "
                f"would change nothing. {ADVICE}"
            )
        return optax.EmptyState()

    def update(updates: PyTree, state: PyTree, params: PyTree = None) -> tuple[PyTree, PyTree]:
        def scale(label: str, u: Array) -> Array:
            return u * jnp.asarray(ratio, u.dtype) if label == "output" else u

        return jax.tree.map(scale, side_labels(updates), updates), state

    return optax.chain(optimiser, optax.GradientTransformation(init, update))
