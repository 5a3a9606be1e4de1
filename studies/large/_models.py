"""Two models of more than a million parameters, for a plane flow at 64 x 64 points."""

import functools
from typing import Any

import foundax
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .. import _solvers as solvers
from .._families import Family


def _fields(key: Array, number: int) -> Float[Array, "batch n n"]:
    return solvers.random_fields(key, number, 64, 2, modes=6)


def _apply_fno(model: Any, fields: Float[Array, "batch n n"]) -> Float[Array, "batch n n"]:
    """The model predicts the change of the field. The equation has no preferred place."""
    return fields + jax.vmap(model)(fields[..., None])[..., 0].reshape(fields.shape)


def _apply_transformer(model: Any, fields: Float[Array, "batch n n"]) -> Float[Array, "batch n n"]:
    time = jnp.ones(len(fields))
    return fields + model(pixel_values=fields[..., None], time=time).output[..., 0]


_SOLVE = functools.partial(solvers.navier_stokes, time=1.0)
_SOURCE = {"viscosity": 0.02}
_COMMAND = "python -m studies.large.store"

FNO = Family(
    "fno2d-64",
    lambda key: foundax.fno2d(
        1, 32, 12, n_layers=4, norm=None, linear_conv=False, d_model=(64, 64), key=key
    ),
    _apply_fno,
    _fields,
    _SOLVE,
    _SOURCE,
    head="Q_layers",
    time_steps=60,
    points=64,
    spectral="conv_layers",
    batch=16,
    steps=4000,
    command=_COMMAND,
)
TRANSFORMER = Family(
    "poseidon-64",
    lambda key: foundax.poseidon(
        image_size=64,
        patch_size=4,
        num_channels=1,
        num_out_channels=1,
        embed_dim=48,
        depths=(2, 2, 2),
        num_heads=(3, 6, 12),
        skip_connections=(1, 1, 0),
        window_size=8,
        mlp_ratio=4.0,
        pretrained_window_sizes=(0, 0, 0),
        key=key,
    ),
    _apply_transformer,
    _fields,
    _SOLVE,
    _SOURCE,
    head="patch_recovery",
    attention="query|key|value|dense",
    time_steps=60,
    points=64,
    batch=16,
    steps=4000,
    command=_COMMAND,
)
