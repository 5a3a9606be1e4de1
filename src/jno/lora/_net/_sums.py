"""Sums of named sets in a net: how sets enter a sum, and how they leave it."""

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import jax.tree_util as jtu

from .._errors import SelectionError, warn
from .._paths import bullets, path_str, show_path
from .._sets import AdapterSet, AdapterSum, Weights, extract_adapters, sets_in, sum_adapters
from .._trainability import carry_to_adapted
from .._tree import adapted_layers, map_adapters
from ._state import InactiveAdapters, NetState


def summed(
    plain: NetState,
    sets: Mapping[str, InactiveAdapters],
    weights: Weights,
    train: Collection[str],
) -> NetState:
    """The model of `plain`, which has no adapters, with the sum of `sets`.

    Without numbers in `weights`, they are as in the last sum of these sets.
    """
    adapters = {name: inactive.adapters for name, inactive in sets.items()}
    module, names = sum_adapters(plain.module, adapters, weights=weights, train=train), [*sets]
    former = {name: sets[name].weights.get(frozenset(names)) for name in names}

    def weighted(path: str, adapter: Any) -> Any:
        new = jnp.ones_like(adapter.weights[..., 0])  # of a layer that no sum had before
        columns = [(former[member.name] or {}).get(path, new) for member in adapter.members]
        return eqx.tree_at(lambda a: a.weights, adapter, jnp.stack(columns, axis=-1))

    def trains(path: str, adapter: Any, mask: Any) -> Any:
        saved = {
            f"trained/{name}/{leaf}": flag
            for name in adapter.trained
            for leaf, flag in sets[name].trains.get(path, {}).items()
        }
        return jtu.tree_map_with_path(lambda keys, new: saved.get(path_str(keys), new), mask)

    if not isinstance(weights, Mapping) and None not in former.values():
        module = map_adapters(weighted, module)
    trainable = map_adapters(trains, module, carry_to_adapted(plain.trainable, module))
    masks = [mask.trained for _, mask in adapted_layers(trainable)]
    for name in train:
        if not any(any(jtu.tree_leaves(trained.get(name, {}))) for trained in masks):
            warn(
                f"No array of the adapters {name!r} trains: all were frozen when they left the "
                f'model. Call net.mask("trained/{name}/").unfreeze() to train all of them.'
            )
    entered = {name: inactive.without_arrays() for name, inactive in sets.items()}
    return NetState(module, trainable, entered=entered)


def is_sum(state: NetState) -> bool:
    """Whether a layer of the model has a sum of sets."""
    return any(isinstance(adapter, AdapterSum) for _, adapter in adapted_layers(state.module))


def with_names(state: NetState) -> NetState:
    """`state`, with the names of the sets whose sums are in its model."""
    sets = sets_in(extract_adapters(state.module))
    members = {name: InactiveAdapters(adapters) for name, adapters in sets.items()}
    return dataclasses.replace(state, entered=members)


def sets_now(state: NetState) -> dict[str, AdapterSet]:
    """The sets of the sum in the model, with their current values."""
    sets = sets_in(extract_adapters(state.module))
    return {name: sets.get(name, AdapterSet({})) for name in state.entered}


def taken_out(state: NetState) -> dict[str, InactiveAdapters]:
    """The sets of the sum in the model, with their values, weights and masks, out of the model.

    **Raises:** `SelectionError` if other layers have adapters without a name.
    """
    layers = list(adapted_layers(state.module, state.trainable))
    if plain := [path for path, adapter, _ in layers if not isinstance(adapter, AdapterSum)]:
        raise SelectionError(
            "The model carries adapters without a name beside a sum of adapters, which would be "
            f"lost:\n{bullets(map(show_path, plain), 5)}\n"
            "Call net.merge() to fold all of them in, or net.unwrap() to drop them. "
            "net.adapter(name) gives a set of the sum, and extract_adapters(net.module) has all."
        )
    weights: dict[str, dict[str, Any]] = {name: {} for name in state.entered}
    trains = {name: dict(inactive.trains) for name, inactive in state.entered.items()}
    for path, adapter, mask in layers:
        for index, member in enumerate(adapter.members):
            weights[member.name][path] = adapter.weights[..., index]
            if member.trains:
                leaves = jtu.tree_leaves_with_path(mask.trained[member.name])
                now = {path_str(keys): flag for keys, flag in leaves}
                trains[member.name][path] = {**trains[member.name].get(path, {}), **now}
    names = frozenset(state.entered)
    return {
        name: InactiveAdapters(
            adapters,
            trains[name],
            state.entered[name].settings,
            {**state.entered[name].weights, names: weights[name]},
        )
        for name, adapters in sets_now(state).items()
    }
