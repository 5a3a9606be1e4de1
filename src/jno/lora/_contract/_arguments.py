"""Checks of arguments that several functions take: random keys, whole numbers."""

import contextlib
import numbers
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._errors import SelectionError
from .._paths import show_array


def check_key(key: Any) -> None:
    """**Raises:** `SelectionError` unless `key` is one key of `jax.random`."""
    is_array = isinstance(key, jax.Array | np.ndarray)
    if is_array and key.ndim == 0 and jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        return
    if is_array and key.ndim == 1 and key.dtype == np.uint32:  # perhaps a raw one
        with contextlib.suppress(TypeError, ValueError):  # raised if the length is wrong
            jax.random.wrap_key_data(jnp.asarray(key))
            return
    came = f"an array {show_array(key)}" if is_array else repr(key)
    raise SelectionError(f"`key` must be one random key, such as jax.random.key(0), but is {came}.")


def is_whole(number: Any) -> bool:
    """Whether `number` is an integer, of Python or NumPy, and not a bool."""
    return isinstance(number, numbers.Integral) and not isinstance(number, bool)
