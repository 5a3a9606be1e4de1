"""The operator of the study, its settings, and the simulations of each setting."""

from dataclasses import replace
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._families import UNET, Effort, simulate

# Only this study used simulations with these seeds.
_TEST_SEED, _POOL_SEED = 11_000, 12_000

# The source, and the speeds that follow, in order. They were chosen before any method was run, by
# the untouched model's error over the speed in the study of conditional adapters. They lie on both
# sides of the source in turn, so that no task is on the way to the next task.
SPEEDS = (1.0, 1.1, 0.9, 1.2, 0.8)
_POINTS = UNET.points
_UNIT = 0.2  # the speed counts from the source in this unit


def _model(key: Array) -> Any:
    """A network of three layers, from the field and the speed to the solution.

    The weights of the speed start as zero. Pretraining sees one speed, which counts as zero, and
    leaves them there.
    """
    model = eqx.nn.MLP(_POINTS + 1, _POINTS, 128, 2, jax.nn.gelu, key=key)

    def first(model: Any) -> Array:
        return model.layers[0].weight

    return eqx.tree_at(first, model, first(model).at[:, -1].set(0.0))


def predict(
    model: Any, fields: Float[Array, "batch n"], z: Float[Array, " batch"]
) -> Float[Array, "batch n"]:
    """The solutions that the model predicts, for fields with the speeds `z`."""
    return jax.vmap(model)(jnp.concatenate([fields, z[:, None]], axis=1))


def _at_source(model: Any, fields: Float[Array, "batch n"]) -> Float[Array, "batch n"]:
    return predict(model, fields, jnp.zeros(len(fields)))


# The equation and the fields are the other studies'. The network is smaller: a sequence has many
# runs, and each way compiles a program.
FAMILY = replace(UNET, name="mlp-speed", make=_model, apply=_at_source, steps=6000)


class Data(NamedTuple):
    """Initial fields and solutions of all settings, the source first, and their speeds.

    - `pool`: what is stored of each setting. The first quarter is for validation.
    """

    pool: tuple[Float[Array, "settings stored n"], Float[Array, "settings stored n"]]
    test: tuple[Float[Array, "settings tests n"], Float[Array, "settings tests n"]]
    z: Float[Array, " settings"]


def data(seed: int, effort: Effort) -> Data:
    """The simulations of a seed. All seeds have the same tests."""

    def simulations(number: int, first: int) -> tuple[Array, Array]:
        parts = [
            simulate(FAMILY, first + index, number, {**FAMILY.source, "velocity": speed})
            for index, speed in enumerate(SPEEDS)
        ]
        fields, solutions = zip(*parts, strict=True)
        return jnp.stack(fields), jnp.stack(solutions)

    pool = simulations(effort.pool, _POOL_SEED + 100 * seed)
    z = (jnp.asarray(SPEEDS) - SPEEDS[0]) / _UNIT
    return Data(pool, simulations(effort.test, _TEST_SEED), z)
