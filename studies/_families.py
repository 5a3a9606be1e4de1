"""What the studies share: equations, models pretrained on them, simulations, errors."""

import functools
import hashlib
import pathlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import foundax
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from . import _solvers as solvers

CACHE = pathlib.Path(__file__).parent / "cache"


@dataclass(frozen=True)
class Effort:
    """How much is computed: the full study, or just enough to see that everything runs."""

    pretraining_fields: int = 1024
    pretraining_steps: int | None = None  # by default the family's `steps`
    pool: int = 128
    test: int = 128
    samples: tuple[int, ...] = (2, 4, 8, 16, 64, 128)
    seeds: int = 3
    rates: tuple[float, ...] = (0.1, 0.3, 1.0, 3.0, 10.0)  # factors of the method's rate
    batch: int = 8
    steps: int = 400
    every: int = 25  # steps between evaluations
    patience: int = 4  # evaluations


FULL = Effort()
QUICK = Effort(8, 4, 4, 4, (2,), 1, (1.0,), 2, 4, 2)


@dataclass(frozen=True)
class Family:
    """A model and its equation.

    - `apply(model, fields)`: the predictions, with the shape of the fields, `(number, *grid)`.
    - `initial(key, number)`: random initial fields on the grid of the solver.
    - `solve(fields, steps=time_steps, **setting)`: the solutions of the fields.
    - `points`: points per axis of the model's grid, a coarser subset of the solver's grid.
    - `head`: regex of the layers that a user would call the head.
    - `spectral`: regex of the layers with spectral weights.
    - `attention`: regex of the linear layers of attention and of the networks after attention.
    - `command`: what pretrains the model, where this takes too long for the first run of a study.
    """

    name: str
    make: Callable[[Array], eqx.Module]
    apply: Callable[[Any, Array], Array]
    initial: Callable[[Array, int], Array]
    solve: Callable[..., Array]
    source: Mapping[str, float]
    head: str
    time_steps: int
    points: int
    spectral: str | None = None
    attention: str | None = None
    batch: int = 32
    steps: int = 2000
    rate: float = 2e-3
    command: str | None = None


def _fields_1d(key: Array, number: int) -> Float[Array, "batch n"]:
    return solvers.random_fields(key, number, 256, 1, modes=4)


def _fields_2d(key: Array, number: int) -> Float[Array, "batch n n"]:
    return solvers.random_fields(key, number, 64, 2, modes=4)


def _apply_fno(model: Any, fields: Float[Array, "batch n"]) -> Float[Array, "batch n"]:
    x = jnp.broadcast_to(jnp.linspace(-1, 1, fields.shape[1], endpoint=False), fields.shape)
    return jax.vmap(model)(jnp.stack([fields, x], axis=-1))[:, 0, :, 0]


def _apply_unet(model: Any, fields: Float[Array, "batch n"]) -> Float[Array, "batch n"]:
    return jax.vmap(model)(fields[..., None])[..., 0]


def _apply_poseidon(model: Any, fields: Float[Array, "batch n n"]) -> Float[Array, "batch n n"]:
    """The model predicts the change of the field, which is small where the flow is slow."""
    time = jnp.ones(len(fields))
    return fields + model(pixel_values=fields[..., None], time=time).output[..., 0]


FNO = Family(
    "fno1d",
    lambda key: foundax.fno1d(2, 32, 12, n_layers=3, linear_conv=False, key=key),
    _apply_fno,
    _fields_1d,
    solvers.burgers,
    {"viscosity": 0.1},
    head="proj1|proj2",
    time_steps=400,
    points=64,
    spectral="layers_conv",
)
UNET = Family(
    "unet1d",
    lambda key: foundax.unet1d(1, 1, depth=4, wf=3, norm="none", key=key),
    _apply_unet,
    _fields_1d,
    solvers.allen_cahn,
    {"velocity": 1.0, "diffusion": 0.02, "reaction": 1.0},
    head="final_conv",
    time_steps=200,
    points=64,
)
POSEIDON = Family(
    "poseidon",
    lambda key: foundax.poseidon(
        image_size=32,
        patch_size=4,
        num_channels=1,
        num_out_channels=1,
        embed_dim=32,
        depths=(1, 1),
        num_heads=(2, 4),
        skip_connections=(0, 0),
        window_size=8,
        mlp_ratio=2.0,
        pretrained_window_sizes=(0, 0),
        key=key,
    ),
    _apply_poseidon,
    _fields_2d,
    functools.partial(solvers.navier_stokes, time=0.5),
    {"viscosity": 0.02},
    head="patch_recovery",
    attention="query|key|value|dense",
    time_steps=25,
    points=32,
    batch=16,
    steps=3000,
)


def simulate(
    family: Family, seed: int, number: int, setting: Mapping[str, float]
) -> tuple[Array, Array]:
    """Initial fields and solutions, `(number, *grid)`; equal seeds give equal initial fields."""
    key = jax.random.fold_in(jax.random.key(2026), seed)
    values = {name: jnp.asarray(value) for name, value in setting.items()}
    sizes = (family.time_steps, family.points, number)
    return _simulate(family.initial, family.solve, *sizes, key, values)


# One program for all values of a setting.
@functools.partial(jax.jit, static_argnums=range(5))
def _simulate(
    initial: Callable[[Array, int], Array],
    solve: Callable[..., Array],
    steps: int,
    points: int,
    number: int,
    key: Array,
    setting: Mapping[str, Array],
) -> tuple[Array, Array]:
    fields = initial(key, number)
    solutions = jax.lax.map(
        lambda field: solve(field[None], steps=steps, **setting)[0], fields, batch_size=16
    )  # a batch fits into a CPU's caches
    coarse = slice(None, None, fields.shape[1] // points)
    model_grid = (slice(None), *[coarse] * (fields.ndim - 1))
    return fields[model_grid], solutions[model_grid]


def relative_errors(predicted: Array, solutions: Array) -> Float[Array, " batch"]:
    """The relative L2 error of each field."""
    axes = tuple(range(1, solutions.ndim))
    errors = jnp.sqrt(jnp.sum((predicted - solutions) ** 2, axis=axes))
    return errors / jnp.sqrt(jnp.sum(solutions**2, axis=axes))


def shifted(fields: Array, shifts: Array, axes: tuple[int, ...]) -> Array:
    """Each field, rolled along the axes by its row of `shifts` `(batch, len(axes))`."""
    if not axes:
        return fields
    roll = functools.partial(jnp.roll, axis=tuple(axis - 1 for axis in axes))
    return jax.vmap(roll)(fields, shifts)


def pretrained(family: Family, effort: Effort) -> Any:
    """The model of a family, trained on the source setting, or read from the cache."""
    file, model = _cached(family, effort)
    if family.command and effort.pretraining_steps is None and not file.exists():
        raise FileNotFoundError(f"There is no {file} yet. `{family.command}` pretrains the model.")
    return eqx.tree_deserialise_leaves(store(family, effort), model)


def store(family: Family, effort: Effort) -> pathlib.Path:
    """The file of the pretrained model in the cache. Pretrain the model if it is not there."""
    file, model = _cached(family, effort)
    if not file.exists():
        model = pretrain(family, effort, model)
        CACHE.mkdir(exist_ok=True)
        unfinished = file.with_suffix(".unfinished")  # a killed run leaves no broken cache file
        eqx.tree_serialise_leaves(unfinished, model)
        unfinished.rename(file)
    return file


def _cached(family: Family, effort: Effort) -> tuple[pathlib.Path, Any]:
    """The file of the pretrained model in the cache, and the model before it is pretrained."""
    model = family.make(jax.random.key(1))
    return CACHE / f"{_recipe(family, effort, model)}.eqx", model


def _recipe(family: Family, effort: Effort, model: Any) -> str:
    """A name that tells how the model is pretrained."""
    shapes = [x.shape for x in jax.tree.leaves(eqx.filter(model, eqx.is_array))]
    amount = (effort.pretraining_fields, effort.pretraining_steps or family.steps)
    recipe = repr((family.name, family.source, amount, family.batch, family.rate, shapes))
    return f"{family.name}-{hashlib.sha256(recipe.encode()).hexdigest()[:12]}"


def pretrain(family: Family, effort: Effort, model: Any) -> Any:
    fields, solutions = simulate(family, 0, effort.pretraining_fields, family.source)
    steps, batch = effort.pretraining_steps or family.steps, min(family.batch, len(fields))
    schedule = optax.cosine_decay_schedule(family.rate, steps)
    optimiser = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule))
    parameters, static = eqx.partition(model, eqx.is_inexact_array)
    axes = tuple(range(1, fields.ndim))  # every source setting allows shifts

    @jax.jit
    def run(parameters: Any) -> Any:
        def step(index: Array, carry: Any) -> Any:
            parameters, state = carry
            index_key, shift_key = jax.random.split(jax.random.key(index))
            indices = jax.random.choice(index_key, len(fields), (batch,))
            shifts = jax.random.randint(shift_key, (batch, len(axes)), 0, fields.shape[1])
            inputs, outputs = (shifted(x[indices], shifts, axes) for x in (fields, solutions))

            def loss(parameters: Any) -> Array:
                predicted = family.apply(eqx.combine(parameters, static), inputs)
                return jnp.mean(relative_errors(predicted, outputs))

            updates, state = optimiser.update(jax.grad(loss)(parameters), state)
            return eqx.apply_updates(parameters, updates), state

        return jax.lax.fori_loop(0, steps, step, (parameters, optimiser.init(parameters)))[0]

    return eqx.combine(run(parameters), static)
