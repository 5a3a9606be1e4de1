"""Layers of random numbers, and an adapter in training."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from jno.lora import lora_trainable_filter


def perturbed(model: Any, size: float = 0.4) -> Any:
    """`model` after some training: noise, the same in every call, on each array that trains.

    The arrays stay where they lie.
    """
    random = np.random.default_rng(0)

    def move(leaf: Any) -> Any:
        return leaf + jnp.asarray(size * random.normal(size=leaf.shape), leaf.dtype)

    trainable, frozen = eqx.partition(model, lora_trainable_filter(model))
    return eqx.combine(jax.tree.map(move, trainable), frozen)


def random_layer(cls: Any = eqx.nn.MultiheadAttention, **sizes: Any) -> Any:
    """A layer in float64 (where that is enabled), its weights and biases NumPy's numbers."""
    random = np.random.default_rng(1)

    def fill(leaf: Any) -> Any:
        if not isinstance(leaf, jax.ShapeDtypeStruct):
            return leaf
        return jnp.asarray(0.6 * random.normal(size=leaf.shape))

    # Only its shapes are computed, so nothing is compiled.
    return jax.tree.map(fill, eqx.filter_eval_shape(lambda: cls(**sizes, key=jax.random.key(0))))


def flat(wrapper: Any) -> dict[str, Any]:
    """The arrays that train, by names such as `gate` and `lora_A/q`."""
    fields = {name: getattr(wrapper, name) for name in type(wrapper).adapter_fields}
    return {
        "/".join([name, *(entry.key for entry in path)]): array
        for name, field in fields.items()
        for path, array in jax.tree_util.tree_leaves_with_path(field)
    }
