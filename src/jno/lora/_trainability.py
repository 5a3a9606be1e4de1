"""Boolean pytrees that mark which arrays train, built by path and field, never by identity."""

import functools
from collections.abc import Container
from typing import Any

import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jax.core import Tracer
from jaxtyping import PyTree

from ._caches import on_forget
from ._contract.checks import expect_model
from ._contract.shared import is_shared
from ._contract.wrapper import LoRAWrapper, is_adapter, trainable_fields
from ._errors import SelectionError
from ._paths import KeyPath
from ._shared_arrays import shared_arrays, with_shared_values
from ._tree import map_adapters


def lora_trainable_filter(model: PyTree) -> PyTree[bool]:
    """`True` for the adapters' trainable arrays only.

    **Arguments:** `model`, any pytree, adapted or not.

    **Returns:** Python bools in the structure of `model`, for `eqx.partition` and for optax masks.

    **Raises:** `SelectionError` if `model` is a `Net` or a set.
    """
    expect_model(model, "lora_trainable_filter")
    return _select(model, _ADAPTER)


def partial_lora_trainable_filter(model: PyTree) -> PyTree[bool]:
    """`True` for the adapters' trainable arrays and for every inexact array outside any adapter.

    The wrapped layers (`base`), and arrays that an adapter keeps frozen, are `False`.

    **Arguments**, **Returns** and **Raises:** as `lora_trainable_filter`.
    """
    expect_model(model, "partial_lora_trainable_filter")
    return _select(model, _ADAPTER | _OUTSIDE)


def lora_param_labels(params: PyTree) -> PyTree[str]:
    """The name of the field for each array of an adapter (`"lora_B"`), `"other"` for other leaves.

    Pass the function itself to optax, which would call a tree of labels that is a callable module:
    `optax.multi_transform({"lora_A": slow, "lora_B": fast, "other": slow}, lora_param_labels)`.

    **Arguments:** `params`, an adapted model, or a part that `eqx.partition` gives.

    **Returns:** strings in the structure of `params`. The adapted layers are `"other"`.

    **Raises:** `SelectionError` if `params` is a `Net` or a set.
    """
    expect_model(params, "lora_param_labels")
    return jtu.tree_map(_labels, params, is_leaf=is_adapter)


def _labels(node: object) -> PyTree[str]:
    def label(path: KeyPath, inner: object) -> PyTree[str]:
        if path[0].name == "base":
            return jax.tree.map(lambda _: "other", inner)
        return _labels(inner) if is_adapter(inner) else path[0].name  # adapters built of adapters

    def is_leaf(inner: object) -> bool:
        return is_adapter(inner) and inner is not node

    return jtu.tree_map_with_path(label, node, is_leaf=is_leaf) if is_adapter(node) else "other"


def may_train(model: PyTree) -> PyTree[bool]:
    """`True` for every inexact array except an adapter's constants (LoRA-FA's `lora_A`).

    A wrapped `base` may be trained if the user asks for it.
    """
    return _select(model, _ADAPTER | _OUTSIDE | _BASE)


def carry_to_adapted(
    trainable: PyTree[bool], adapted: PyTree, replaced: Container[str] = ()
) -> PyTree[bool]:
    """`trainable` of a model, for the same model with more layers adapted.

    New adapters train and their bases do not. Other arrays train as before.

    - `replaced`: the paths of layers that had another adapter before.
    """
    of_new_model = lora_trainable_filter(adapted)
    shared = shared_arrays(trainable)  # whether each shared array trains

    def carry(path: str, adapter: LoRAWrapper, new: PyTree, before: PyTree) -> PyTree:
        mask = new if path in replaced or not is_adapter(before) else before
        return with_shared_values(mask, adapter, shared) if shared else mask

    return map_adapters(carry, adapted, of_new_model, trainable)


def carry_to_plain(trainable: PyTree[bool], adapted: PyTree, plain: PyTree) -> PyTree[bool]:
    """The mask of the model without adapters: each layer keeps the bools of its adapter's base."""
    carried = map_adapters(lambda _, adapter, before: before.base, adapted, trainable)
    # The static parts come from the plain model, so that the two trees match node by node.
    return jtu.tree_unflatten(jtu.tree_structure(plain), jtu.tree_leaves(carried))


# The roles of a leaf. A leaf without a role is a constant that an adapter keeps.
_OUTSIDE, _BASE, _ADAPTER = 1, 2, 4

_ARRAYS = (jax.Array, np.ndarray, jax.ShapeDtypeStruct, Tracer)


def _select(model: PyTree, roles: int) -> PyTree[bool]:
    """`True` for the inexact arrays of `model` with one of these roles."""
    leaves, treedef = jtu.tree_flatten(model)
    kinds = tuple(map(type, leaves)), tuple([getattr(leaf, "dtype", None) for leaf in leaves])
    try:
        nodes, outer = _filter(treedef, roles, kinds)
    except TypeError:  # a static field that cannot be hashed
        nodes, outer = _filter.__wrapped__(treedef, roles, kinds)
    return jtu.tree_unflatten(outer, nodes)


# Cached, because callers request the filters of one model repeatedly.
@functools.lru_cache(32)
def _filter(treedef: Any, roles: int, kinds: tuple[Any, Any]) -> tuple[list[Any], Any]:
    """Whether each leaf of a model is an inexact array with one of these roles.

    **Returns:** the bools, or whole adapters of bools, and the structure of the model around them,
    so that each caller gets new lists and dicts, which it may change.
    """
    model = jtu.tree_unflatten(treedef, range(treedef.num_leaves))
    if any(is_shared(x) and x.held for x in jtu.tree_leaves(model, is_leaf=is_shared)):
        raise SelectionError(
            "This model was resolved. It is for calls: the arrays that its adapters share are not "
            "among its leaves. Ask about, and train, the model that `jno.lora.resolve` was given."
        )
    marked = jtu.tree_map(
        lambda node: _inside(node) if is_adapter(node) else _OUTSIDE, model, is_leaf=is_adapter
    )
    flags = [
        bool(role & roles) and issubclass(cls, _ARRAYS) and bool(jnp.issubdtype(dtype, jnp.inexact))
        for role, cls, dtype in zip(jtu.tree_leaves(marked), *kinds, strict=True)
    ]
    return jtu.tree_flatten(jtu.tree_unflatten(treedef, flags), is_leaf=is_adapter)


on_forget(_filter.cache_clear)


def _inside(adapter: LoRAWrapper) -> PyTree[int]:
    """The role of each leaf of an adapter, in the structure of the adapter."""
    cls = type(adapter)
    roles = {**dict.fromkeys(trainable_fields(cls), _ADAPTER), "base": _BASE}

    def mark(path: KeyPath, node: PyTree) -> PyTree[int]:
        role = roles.get(path[0].name, 0)
        if is_leaf(path, node):
            # An array trains if both adapters train it.
            return jax.tree.map(lambda inner: inner & role, _inside(node))
        return role

    def is_leaf(path: KeyPath, node: PyTree) -> bool:
        # An adapter may be built of adapters.
        return is_adapter(node) and node is not adapter and path[0].name != "base"

    return jtu.tree_map_with_path(mark, adapter, is_leaf=is_leaf, is_leaf_takes_path=True)
