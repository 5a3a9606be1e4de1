"""Numbers: precisions to compute in, and a check of arguments."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from jno.lora import SelectionError
from jno.lora.extending import compute_dtype


def at_least_float32(tree: Any) -> Any:
    """`tree` with its arrays in the dtypes to compute in: half precision becomes float32."""

    def widen(x: Any) -> Any:
        # Equinox takes NumPy's bfloat16 for an exact dtype.
        is_inexact = eqx.is_array(x) and jnp.issubdtype(x.dtype, jnp.inexact)
        return x.astype(compute_dtype(x)) if is_inexact else x

    return jax.tree.map(widen, tree)


def check_number(name: str, number: Any) -> None:
    """**Raises:** `SelectionError` unless `number` is one real number, which may be traced."""
    kinds = int | float | np.number | np.ndarray | jax.Array
    if not isinstance(number, kinds) or jnp.ndim(number) or jnp.iscomplexobj(number):
        raise SelectionError(f"`{name}` must be one real number, but is {number!r}.")
