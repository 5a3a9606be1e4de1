"""Questions of the properties to models: the adapters in them, and whether two are the same."""

from typing import Any

import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np

from jno.lora import LoRAWrapper

from .naive import is_array, nodes_below


def adapters(model: Any) -> dict[str, LoRAWrapper]:
    """Every adapter by its path, in the order of the tree. None is inside another."""
    nodes = [("", model), *nodes_below("", model)]
    return {path: node for path, node in nodes if isinstance(node, LoRAWrapper)}


def owner(path: str, wrapped: Any) -> str | None:
    """The one of the paths `wrapped` at or above `path`."""
    return next((p for p in wrapped if path == p or path.startswith(f"{p}/" if p else "")), None)


def same(one: Any, other: Any) -> bool:
    """Bit for bit. An array of NumPy and one of JAX may be the same, of two dtypes never."""
    if jtu.tree_structure(one) != jtu.tree_structure(other):
        return False
    return all(map(_same_leaf, jtu.tree_leaves(one), jtu.tree_leaves(other)))


def _same_leaf(x: Any, y: Any) -> bool:
    if not is_array(x) or not is_array(y):
        return type(x) is type(y) and (x is y or bool(x == y))
    x, y = np.asarray(x), np.asarray(y)
    return (x.shape, x.dtype) == (y.shape, y.dtype) and x.tobytes() == y.tobytes()


def assert_close(one: Any, other: Any, coarsest: Any = jnp.float32) -> None:
    """One structure, and arrays that differ by rounding only.

    A split weight is rounded twice (the residual, the sum), by half a unit in the last place of the
    largest number each: `eps` of it in half precision. In float32 the decompositions and norms
    round as well: 2e-6, some 16 `eps`.

    - `coarsest`: the dtype of the adapters, if it is coarser than that of an array.
    """
    assert jtu.tree_structure(one) == jtu.tree_structure(other)
    for x, y in zip(jtu.tree_leaves(one), jtu.tree_leaves(other), strict=True):
        if not is_array(y) or not jnp.issubdtype(y.dtype, jnp.inexact):
            assert _same_leaf(x, y)
            continue
        assert (x.shape, x.dtype) == (y.shape, y.dtype)
        tolerance = max(2e-6, *(eps for eps in map(_eps, (x.dtype, coarsest)) if eps > 1e-6), 0)
        x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
        assert np.max(np.abs(x - y), initial=0) <= tolerance * np.max(np.abs(y), initial=0)


def _eps(dtype: Any) -> float:
    return float(jnp.finfo(dtype).eps)


def moved(array: Any, rng: np.random.Generator) -> jax.Array:
    """Other numbers in the same dtype."""
    return jnp.asarray(np.asarray(array, np.float64) + rng.normal(size=array.shape), array.dtype)


def trained(model: Any, seed: int) -> Any:
    """As if training had moved every trained array."""
    rng = np.random.default_rng(seed)

    def in_adapter(node: Any) -> Any:
        if not isinstance(node, LoRAWrapper):
            return node

        def of_field(keys: Any, x: Any) -> Any:
            return moved(x, rng) if keys[0].name in type(node).adapter_fields else x

        return jtu.tree_map_with_path(of_field, node)

    return jax.tree.map(in_adapter, model, is_leaf=lambda n: isinstance(n, LoRAWrapper))
