"""Weights in a file of half their size: bfloat16, compressed."""

import pathlib
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

FOLDER = pathlib.Path(__file__).parent / "weights"


def write(file: pathlib.Path, model: Any) -> None:
    """Write the inexact arrays of a model, rounded to bfloat16.

    The high bytes of all numbers are alike, so they are compressed apart from the low bytes.
    """
    arrays = jax.tree.leaves(eqx.filter(model, eqx.is_inexact_array))
    halves = [np.asarray(jnp.asarray(x, jnp.bfloat16)).view(np.uint8) for x in arrays]
    low_and_high = np.concatenate([half.reshape(-1, 2) for half in halves]).T
    file.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(file, low=low_and_high[0], high=low_and_high[1])


def read(file: pathlib.Path, model: Any) -> Any:
    """A model of the same structure with the arrays of a file, in the model's dtypes."""
    arrays, static = eqx.partition(model, eqx.is_inexact_array)
    leaves, structure = jax.tree.flatten(arrays)
    with np.load(file) as parts:
        low_and_high = np.stack([parts["low"], parts["high"]])
    halves = np.ascontiguousarray(low_and_high.T).view(jnp.bfloat16)[:, 0]
    if len(halves) != (number := sum(leaf.size for leaf in leaves)):
        raise ValueError(f"{file} has {len(halves):,} numbers, and the model has {number:,}.")
    ends = np.cumsum([leaf.size for leaf in leaves])[:-1]
    split = np.split(halves, ends)
    read = [
        jnp.asarray(part.reshape(leaf.shape), leaf.dtype)
        for part, leaf in zip(split, leaves, strict=True)
    ]
    return eqx.combine(jax.tree.unflatten(structure, read), static)
