"""Arithmetic on the arrays of a layer by NumPy, because JAX compiles a program for each shape."""

import contextlib
from typing import Any

import jax
import numpy as np
from jax.core import Tracer
from jaxtyping import Array

from jno.lora.extending import compute_dtype
from jno_lora_zoo import in_compute_dtype


def on_host(array: Any) -> Any:
    """`array` in its compute dtype, for arithmetic; a NumPy array if its values are on one CPU.

    NumPy rounds sums and products as JAX does.
    """
    is_here = isinstance(array, np.ndarray) or _device_of(array) is not None
    return np.asarray(array).astype(compute_dtype(array)) if is_here else in_compute_dtype(array)


def beside(result: Any, array: Any) -> Array:
    """The result of arithmetic with `on_host(array)`, as an array of JAX on the same device."""
    if not isinstance(result, np.ndarray):
        return result
    device = _device_of(array)
    with contextlib.nullcontext() if device is None else jax.default_device(device):
        return jax.device_put(result)  # `jnp.asarray` compiles a program


def _device_of(array: Any) -> Any:
    """The CPU that stores the values of an array of JAX, or `None`."""
    if not isinstance(array, jax.Array) or isinstance(array, Tracer):
        return None
    devices = list(array.devices())
    return devices[0] if [device.platform for device in devices] == ["cpu"] else None
