"""The layer kind in whose terms an adapter changes a layer."""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from jno.lora import LoRAWrapper, MatrixAdapter
from jno.lora.extending import is_coded, members_of

from ._layer_kind import LayerKind
from ._method import Method
from .layers import LAYER_KINDS


def kind_for(adapter: type[LoRAWrapper], layer: Any) -> type[LayerKind] | None:
    """The kind of `layer` whose matrix is the matrix that adapters of this class update.

    Adapters of a method have a kind; for other classes, it is one of the zoo's `LAYER_KINDS`.
    """
    classes = adapter, *(member.wrapper for member in members_of(adapter))
    own = [cls.kind for cls in classes if issubclass(cls, Method) and cls.kind is not LayerKind]
    kinds = (kind for kind in (*own, *LAYER_KINDS) if kind.applies_to(layer))
    of_adapter = MatrixAdapter.of(adapter)
    return next((kind for kind in kinds if _have_same_matrix(of_adapter, kind, layer)), None)


def _have_same_matrix(first: Any, second: type[LayerKind], layer: Any) -> bool:
    ndim = second.stack_ndim(layer)
    if getattr(first.matrix, "__func__", None) is second.matrix.__func__:  # pyright: ignore
        return True

    # Not with the layer's own values, because a matrix of zeros is equal to its transpose.
    def numbered(leaf: Any) -> Any:
        if not (is_coded(leaf) or eqx.is_inexact_array(leaf)):
            return leaf
        shape = leaf.shape[ndim:]
        return jnp.arange(math.prod(shape), dtype=jnp.float32).reshape(shape)

    with jax.ensure_compile_time_eval():
        one_layer = jax.tree.map(numbered, layer, is_leaf=is_coded)
        matrices = first.matrix(one_layer), second.matrix(one_layer)
    return first.stack_ndim(layer) == ndim and np.array_equal(*matrices)
