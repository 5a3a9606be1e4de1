"""Sums of the named sets of a `Net`: what the hook `jno_lora_sums` returns."""

import dataclasses
from collections.abc import Collection, Mapping

import equinox as eqx
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, PyTree

from jno.lora import SelectionError, extract_adapters, lora_trainable_filter
from jno.lora.extending import (
    NamedSet,
    Trains,
    Weights,
    adapted_layers,
    bullets,
    is_traced,
    map_adapters,
    members_of,
    path_str,
    show_path,
    warn,
)

from ._sum import AdapterSum, split_adapters, sum_adapters


def activate(
    model: PyTree, sets: Mapping[str, NamedSet], weights: Weights, train: Collection[str]
) -> tuple[PyTree, Trains]:
    """`model` with the sum of these sets, and which leaves of its adapters train.

    Without numbers in `weights`, the weights are as in the last sum of these sets.

    **Raises:** `SelectionError` if `weights` are traced; and as `sum_adapters`.
    """
    if is_traced(weights):
        raise SelectionError(
            "A net cannot store traced `weights`. Call `sum_adapters(model, sets, "
            "weights=weights)` inside of the transformation; it changes no net."
        )
    adapters = {name: stored.adapters for name, stored in sets.items()}
    summed = sum_adapters(model, adapters, weights=weights, train=train)
    former = {name: stored.weights.get(frozenset(sets), {}) for name, stored in sets.items()}

    def weighted(path: str, adapter: AdapterSum) -> AdapterSum:
        new = jnp.ones_like(adapter.weights[..., 0])  # for a layer that was in no sum before
        columns = [former[member.name].get(path, new) for member in adapter.members]
        return eqx.tree_at(lambda a: a.weights, adapter, jnp.stack(columns, axis=-1))

    if not isinstance(weights, Mapping) and all(former.values()):
        summed = map_adapters(weighted, summed)
    trains = {
        path: {
            f"trained/{name}/{leaf}": flag
            for name in adapter.trained
            for leaf, flag in sets[name].trains.get(path, {}).items()
        }
        for path, adapter in adapted_layers(summed)
    }
    for name in train:
        if _is_frozen(name, summed, trains):
            warn(
                f"No array of the adapters {name!r} trains, because all were frozen before. "
                f'net.mask("trained/{name}/").unfreeze() lets them train.'
            )
    return summed, trains


def _is_frozen(name: str, model: PyTree, trains: Trains) -> bool:
    """Whether no array of the set `name` trains."""
    for path, mask in adapted_layers(lora_trainable_filter(model)):
        flags = jtu.tree_leaves_with_path(mask.trained.get(name, {}))
        saved = trains[path]
        if any(saved.get(f"trained/{name}/{path_str(keys)}", flag) for keys, flag in flags):
            return False
    return True


def deactivate(
    model: PyTree, trainable: PyTree[bool], sets: Mapping[str, NamedSet]
) -> dict[str, NamedSet]:
    """The sets of the sum in `model`, with their values, weights and masks.

    **Raises:** `SelectionError` if `model` has other adapters beside the sum.
    """
    layers = list(adapted_layers(model, trainable))
    if plain := [path for path, adapter, _ in layers if not members_of(type(adapter))]:
        raise SelectionError(
            "The model carries adapters without a name beside a sum of adapters, which would be "
            f"lost:\n{bullets(map(show_path, plain), 5)}\n"
            "Call net.merge() or net.unwrap(). extract_adapters(net.module) has all adapters."
        )
    weights: dict[str, dict[str, Array]] = {name: {} for name in sets}
    trains = {name: dict(stored.trains) for name, stored in sets.items()}
    for path, adapter, mask in layers:
        for index, member in enumerate(adapter.members):
            weights[member.name][path] = adapter.weights[..., index]
            if member.trains:
                leaves = jtu.tree_leaves_with_path(mask.trained[member.name])
                now = {path_str(keys): flag for keys, flag in leaves}
                trains[member.name][path] = {**trains[member.name].get(path, {}), **now}
    return {
        name: dataclasses.replace(
            sets[name],
            adapters=adapters,
            trains=trains[name],
            weights={**sets[name].weights, frozenset(sets): weights[name]},
            identity=object(),  # trained in a sum, so that a former hand-out no longer fits
        )
        for name, adapters in split_adapters(extract_adapters(model)).items()
    }
