"""An optimiser for all slots at once, each apart."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, Float, PyTree

from jno.lora import SelectionError
from jno.lora.extending import imported_for, path_str

# From its axis of slots on, a factor has this many axes.
_FACTOR_NDIM = 3


def slotwise(
    make: Callable[[Any], Any],
    rates: Float[Any, " slots"],
    trains: Mapping[str, Any],
) -> Any:
    """`make(rate)` for each slot, as one optimiser of the factors of all slots.

    - `trains`: by the path of each array of factors, which slots move.
    """
    with imported_for("AdapterBank.optimiser", "optim", "optax"):
        import optax

    def init(params: PyTree) -> Any:
        return jax.vmap(lambda rate, own: make(rate).init(own))(typed(params), _front(params))

    def typed(factors: PyTree) -> Array:
        """The rates in the dtype of the factors: a traced rate would change theirs."""
        return jnp.asarray(rates, next((x.dtype for x in jax.tree.leaves(factors)), None))

    def moving(keys: Any, x: Array) -> Array:
        """`x`, or zero in the slots that do not train. Its first axis is that of the slots."""
        moves = trains[path_str(keys)]
        return jnp.where(moves.reshape(-1, *(1,) * (x.ndim - 1)), x, 0)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        def one(rate: Array, *own: Any) -> Any:
            return make(rate).update(*own)

        # Before, since norms must not count a frozen factor; and after, since it must not decay.
        updates = jtu.tree_map_with_path(moving, _front(updates))
        updates, state = jax.vmap(one)(typed(updates), updates, state, _front(params))
        updates = jtu.tree_map_with_path(moving, updates)
        return jax.tree.map(lambda x: jnp.moveaxis(x, 0, -_FACTOR_NDIM), updates), state

    return optax.GradientTransformation(init, update)


def _front(tree: PyTree) -> PyTree:
    """The factors, with the axis of their slots in front of that of a stack."""

    def move(keys: Any, x: Array) -> Array:
        name = path_str(keys)
        if name.rpartition("/")[2] not in ("lora_A", "lora_Bt"):
            raise SelectionError(
                f"{name} is not a factor of a slot. Give the optimiser of a bank the trainable "
                "part that bank.partition() returns."
            )
        return jnp.moveaxis(x, -_FACTOR_NDIM, 0)

    return jtu.tree_map_with_path(move, tree)
