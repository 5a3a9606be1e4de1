"""The operators of the study, their settings, and the simulations of each setting."""

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._families import FNO, UNET, Effort, Family, pretrained, simulate

# Only this study used simulations with these seeds.
_TEST_SEED, _POOL_SEED = 11_000, 12_000

Predict = Callable[[Any, Float[Array, "batch n"], Float[Array, " batch"]], Float[Array, "batch n"]]


@dataclass(frozen=True)
class Operator:
    """A pretrained model whose input says the setting, and the settings.

    - `model(effort)`: the pretrained model.
    - `predict(model, fields, z)`: the solutions, for fields in the settings `z`.
    - `varies`: the number of the equation that the settings change, and its `values`: the source's,
        and the values that follow, in order.
    - `z`: how the model is told the values. The source is 0.
    - `seeds`: the study runs at most so many.
    - `dense`: regex of the layers whose weights are matrices; `None` if all are.
    """

    name: str
    family: Family
    model: Callable[[Effort], Any]
    predict: Predict
    varies: str
    symbol: str
    values: tuple[float, ...]
    z: tuple[float, ...]
    seeds: int
    dense: str | None = None

    @property
    def labels(self) -> list[str]:
        """The settings for a table."""
        return [f"{self.symbol} = {value:g}" for value in self.values]


def _mlp(key: Array) -> Any:
    """A network of three layers, from the field and the speed to the solution.

    The weights of the speed start as zero. Pretraining sees one speed, which counts as zero, and
    leaves them there.
    """
    model = eqx.nn.MLP(UNET.points + 1, UNET.points, 128, 2, jax.nn.gelu, key=key)

    def first(model: Any) -> Array:
        return model.layers[0].weight

    return eqx.tree_at(first, model, first(model).at[:, -1].set(0.0))


def _predict_mlp(
    model: Any, fields: Float[Array, "batch n"], z: Float[Array, " batch"]
) -> Float[Array, "batch n"]:
    return jax.vmap(model)(jnp.concatenate([fields, z[:, None]], axis=1))


def _at_source(model: Any, fields: Float[Array, "batch n"]) -> Float[Array, "batch n"]:
    return _predict_mlp(model, fields, jnp.zeros(len(fields)))


def _fno(effort: Effort) -> Any:
    """The FNO of the study of operators, with a further input, whose weights are zero."""
    model = pretrained(FNO, effort)
    weight, bias = jnp.pad(model.lift.weight, ((0, 0), (0, 1))), model.lift.bias
    lift = eqx.nn.Linear(weight.shape[1], weight.shape[0], key=jax.random.key(0))
    lift = eqx.tree_at(lambda lift: (lift.weight, lift.bias), lift, (weight, bias))
    return eqx.tree_at(lambda model: model.lift, model, lift)


def _predict_fno(
    model: Any, fields: Float[Array, "batch n"], z: Float[Array, " batch"]
) -> Float[Array, "batch n"]:
    x = jnp.broadcast_to(jnp.linspace(-1, 1, fields.shape[1], endpoint=False), fields.shape)
    columns = [fields, x, jnp.broadcast_to(z[:, None], fields.shape)]
    return jax.vmap(model)(jnp.stack(columns, axis=-1))[:, 0, :, 0]


# The equation and the fields are the other studies'. The network is smaller: a sequence has many
# runs, and each way compiles a program.
MLP_FAMILY = replace(UNET, name="mlp-speed", make=_mlp, apply=_at_source, steps=6000)
# The speeds were chosen before any method was run, by the untouched model's error over the speed in
# the study of conditional adapters. They lie on both sides of the source in turn, so that no task
# is on the way to the next task.
MLP = Operator(
    "mlp-speed",
    MLP_FAMILY,
    functools.partial(pretrained, MLP_FAMILY),
    _predict_mlp,
    "velocity",
    "c",
    values=(1.0, 1.1, 0.9, 1.2, 0.8),
    z=(0.0, 0.5, -0.5, 1.0, -1.0),
    seeds=3,
)
# The viscosities were chosen before any method was run, by the untouched model's error, 8 to 24 %.
FNO_1D = Operator(
    "fno1d",
    FNO,
    _fno,
    _predict_fno,
    "viscosity",
    "nu",
    values=(0.1, 0.07, 0.14, 0.05, 0.2),
    z=(0.0, -0.5, 0.5, -1.0, 1.0),  # the logarithm to the base 2, rounded, as 0.1 and 0.2 have it
    seeds=1,
    dense="^(?!.*layers_conv)",
)
OPERATORS = (MLP, FNO_1D)


class Data(NamedTuple):
    """Initial fields and solutions of all settings, the source first, and how a model is told them.

    - `pool`: what is stored of each setting. The first quarter is for validation.
    """

    pool: tuple[Float[Array, "settings stored n"], Float[Array, "settings stored n"]]
    test: tuple[Float[Array, "settings tests n"], Float[Array, "settings tests n"]]
    z: Float[Array, " settings"]


def data(operator: Operator, seed: int, effort: Effort) -> Data:
    """The simulations of a seed. All seeds have the same tests."""
    family = operator.family

    def simulations(number: int, first: int) -> tuple[Array, Array]:
        parts = [
            simulate(family, first + index, number, {**family.source, operator.varies: value})
            for index, value in enumerate(operator.values)
        ]
        fields, solutions = zip(*parts, strict=True)
        return jnp.stack(fields), jnp.stack(solutions)

    pool = simulations(effort.pool, _POOL_SEED + 100 * seed)
    return Data(pool, simulations(effort.test, _TEST_SEED), jnp.asarray(operator.z))
