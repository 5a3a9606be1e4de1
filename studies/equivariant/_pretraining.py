"""The model of the study: a small NequIP that learns from SevenNet-0."""

import hashlib
from dataclasses import dataclass
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from .._families import CACHE
from ._checkpoint import sevennet_0
from ._crystals import Crystal, graph_of, stacked
from ._force_field import ForceField, Graph
from ._frames import (
    METALS,
    RATTLE,
    SALTS_AND_SEMICONDUCTORS,
    STRAIN,
    TARGET_METALS,
    Frames,
    misfit,
    predictions,
    rattled_cells,
    shifted,
)
from ._teacher import Labels

MATERIALS = (*TARGET_METALS, *METALS, *SALTS_AND_SEMICONDUCTORS)
_NUMBERS = dict.fromkeys(number for material in MATERIALS for number in material[2])
TYPES = {number: index for index, number in enumerate(_NUMBERS)}
CUTOFF = 5.0  # angstrom, as SevenNet-0 has it


@dataclass(frozen=True)
class Recipe:
    """The sizes of the model and of its training."""

    irreps: tuple[str, ...] = ("32x0e", "32x0e+16x1e+8x2e", "32x0e+16x1e+8x2e", "32x0e")
    widths: tuple[int, ...] = (8, 32, 32)
    frames: int = 24  # of each material
    test: int = 4  # frames of each material
    steps: int = 3000
    batch: int = 2
    rate: float = 5e-3
    from_sevennet: bool = True  # else labels are zero


RECIPE = Recipe()


class Source(NamedTuple):
    """The pretrained model, and test frames: `near` (other metals) and `far` (the rest)."""

    model: ForceField
    near: Frames
    far: Frames


def graphs_of(crystals: list[Crystal]) -> Graph:
    """The graphs of crystals for the model of the study."""
    return stacked([graph_of(crystal, TYPES, CUTOFF) for crystal in crystals], CUTOFF)


def source_of(recipe: Recipe) -> Source:
    """Pretrain the model, or read the model and the labels from the cache."""
    parts = {
        "training": rattled_cells(7, MATERIALS, recipe.frames),
        "near": rattled_cells(8, METALS, recipe.test),
        "far": rattled_cells(9, SALTS_AND_SEMICONDUCTORS, recipe.test),
    }
    crystals = [crystal for part in parts.values() for crystal in part]
    name = f"equivariant-{_hash((recipe.frames, recipe.test))}"
    frames = Frames(graphs_of(crystals), _labels(crystals, name, recipe.from_sevennet))
    split: dict[str, Frames] = {}
    start = 0
    for part, cells in parts.items():
        here = slice(start, start + len(cells))
        split[part] = jax.tree.map(lambda x, here=here: x[here], frames)
        start += len(cells)
    return Source(_pretrained(recipe, split["training"]), split["near"], split["far"])


def _hash(recipe: Any) -> str:
    text = repr((recipe, MATERIALS, STRAIN, RATTLE))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _labels(crystals: list[Crystal], name: str, from_sevennet: bool) -> Labels:
    """SevenNet-0's energies and forces, or those in the cache."""
    if not from_sevennet:
        number = len(crystals)
        return Labels(jnp.zeros(number), jnp.zeros((number, 4, 3)))
    file = CACHE / f"{name}.npz"
    if not file.exists():
        model, types = sevennet_0()
        graphs = stacked([graph_of(c, types, model.cutoff) for c in crystals], model.cutoff)
        energy, forces = eqx.filter_jit(predictions)(model, graphs)
        CACHE.mkdir(exist_ok=True)
        unfinished = file.with_suffix(".unfinished.npz")  # a killed run leaves no broken file
        np.savez(unfinished, energy=energy, forces=forces)
        unfinished.rename(file)
    with np.load(file) as arrays:
        return Labels(jnp.asarray(arrays["energy"]), jnp.asarray(arrays["forces"]))


def _pretrained(recipe: Recipe, frames: Frames) -> ForceField:
    model = ForceField(
        recipe.irreps, len(TYPES), widths=recipe.widths, divisor=6.0, key=jax.random.key(0)
    )
    file = CACHE / f"equivariant-{_hash(recipe)}.eqx"
    if recipe.from_sevennet and file.exists():
        return eqx.tree_deserialise_leaves(file, model)
    energies = jnp.zeros(len(frames.labels.energy))
    model = _trained(recipe, shifted(model, energies, frames), frames)
    if recipe.from_sevennet:
        unfinished = file.with_suffix(".unfinished")
        eqx.tree_serialise_leaves(unfinished, model)
        unfinished.rename(file)
    return model


def _trained(recipe: Recipe, model: ForceField, frames: Frames) -> ForceField:
    trainable, frozen = eqx.partition(model, eqx.is_inexact_array)
    schedule = optax.cosine_decay_schedule(recipe.rate, recipe.steps)
    optimiser = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule))

    @jax.jit
    def run(trainable: Any, frames: Frames) -> Any:
        def step(index: Any, carry: Any) -> Any:
            trainable, state = carry
            number = len(frames.labels.energy)
            draws = jax.random.choice(jax.random.key(index), number, (recipe.batch,))
            batch = jax.tree.map(lambda x: x[draws], frames)

            def loss(trainable: Any) -> Any:
                predicted = predictions(eqx.combine(trainable, frozen), batch.graphs)
                return misfit(predicted, batch.labels)

            updates, state = optimiser.update(jax.grad(loss)(trainable), state)
            return eqx.apply_updates(trainable, updates), state

        return jax.lax.fori_loop(0, recipe.steps, step, (trainable, optimiser.init(trainable)))[0]

    return eqx.combine(run(trainable, frames), frozen)
