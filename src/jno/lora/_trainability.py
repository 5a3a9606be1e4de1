"""Which arrays train: boolean pytrees of a model, built by path and field, never by identity."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import PyTree

from ._contract import LoRAWrapper, is_wrapper


def lora_trainable_filter(model: PyTree) -> PyTree[bool]:
    """`True` for the adapters' trainable arrays only.

    **Arguments:**

    - `model`: any pytree, adapted or not.

    **Returns:** Python bools in the structure of `model`, for `eqx.partition` and for optax masks.
    """
    return jtu.tree_map(
        lambda node: _adapter_mask(node) if is_wrapper(node) else False, model, is_leaf=is_wrapper
    )


def partial_lora_trainable_filter(model: PyTree) -> PyTree[bool]:
    """`True` for the adapters' trainable arrays and for every inexact array outside any wrapper.

    The wrapped layers themselves (`base`), and arrays that an adapter keeps frozen, are `False`.

    **Arguments:**

    - `model`: any pytree, adapted or not.

    **Returns:** Python bools in the structure of `model`.
    """
    return jtu.tree_map(
        lambda node: _adapter_mask(node) if is_wrapper(node) else _is_inexact(node),
        model,
        is_leaf=is_wrapper,
    )


def may_train(model: PyTree) -> PyTree[bool]:
    """`True` for every inexact array but those that an adapter keeps frozen (LoRA-FA's `lora_A`).

    A wrapped `base` may be trained if the user insists; an adapter's own constants may not.
    """

    def mark(node: Any) -> Any:
        if not is_wrapper(node):
            return _is_inexact(node)
        adapters = _adapter_mask(node)
        return eqx.tree_at(lambda w: w.base, adapters, jax.tree.map(_is_inexact, node.base))

    return jtu.tree_map(mark, model, is_leaf=is_wrapper)


def carry_to_adapted(trainable: PyTree[bool], adapted: PyTree) -> PyTree[bool]:
    """The state `trainable` of a model, carried to the same model with more layers adapted.

    New adapters train and their bases do not; everything else stays as it was.
    """

    def carry(node: Any, before: Any) -> Any:
        return _adapter_mask(node) if is_wrapper(node) and not is_wrapper(before) else before

    return jtu.tree_map(carry, adapted, trainable, is_leaf=is_wrapper)


def carry_to_plain(trainable: PyTree[bool], adapted: PyTree, plain: PyTree) -> PyTree[bool]:
    """The state `trainable` of an adapted model, carried to its merged or unwrapped form.

    Each layer takes the state of its `base` (frozen, unless the user unfroze it).
    """

    def carry(node: Any, before: Any) -> Any:
        return before.base if is_wrapper(node) else before

    carried = jtu.tree_map(carry, adapted, trainable, is_leaf=is_wrapper)
    # The static parts come from the plain model, so that the two trees match node by node.
    return jtu.tree_unflatten(jtu.tree_structure(plain), jtu.tree_leaves(carried))


def _adapter_mask(wrapper: LoRAWrapper) -> Any:
    """`True` for the arrays in the wrapper's `adapter_fields`, in the wrapper's structure."""

    def mark(path: tuple[Any, ...], node: Any) -> Any:
        trains = path[0].name in type(wrapper).adapter_fields
        if is_wrapper(node):  # an adapter may be built of adapters
            inner = _adapter_mask(node)
            return inner if trains else jax.tree.map(lambda _: False, inner)
        return trains and _is_inexact(node)

    return jtu.tree_map_with_path(
        mark, wrapper, is_leaf=lambda node: is_wrapper(node) and node is not wrapper
    )


def _is_inexact(leaf: Any) -> bool:
    """Whether `leaf` is a floating or complex array (or stands for one, as in `eval_shape`)."""
    return isinstance(leaf, jax.Array | np.ndarray | jax.ShapeDtypeStruct) and bool(
        jnp.issubdtype(leaf.dtype, jnp.inexact)
    )
