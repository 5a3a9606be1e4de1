"""The state of a `Net`: an immutable value, from which each operation makes a new state."""

import dataclasses
import operator
from collections.abc import Collection, Container, Mapping
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import PyTree

from .._checkpoint import Classes, FilePath, Strict, load, read_for
from .._contract import LoRAWrapper, is_adapter, is_traced
from .._errors import SelectionError, warn
from .._merge import merge_lora, unwrap_lora
from .._moved import moved
from .._paths import bullets, nearest, path_str, show_array, show_path
from .._planning import MaskLike, parse_mask
from .._registry import Registry
from .._sets import (
    AdapterSet,
    Weights,
    extract_adapters,
    members_of,
    put_around,
    settings_of,
    with_settings,
)
from .._trainability import (
    carry_to_adapted,
    carry_to_plain,
    lora_trainable_filter,
    may_train,
    partial_lora_trainable_filter,
)
from .._tree import adapted_layers, holds_adapters, map_adapters

T = TypeVar("T")

# The identity of adapters in a tree that does not come from a net.
UNKNOWN = object()

# A layer as it was before adapting, and the `base` that an adapter made of it. (PiSSA makes a
# residual, and its `unwrap` restores the weight only up to rounding.)
Original = tuple[Any, Any]


@dataclasses.dataclass(frozen=True)
class NamedAdapters:
    """A set of adapters that has a name in a net.

    - `adapters`: empty while the set is active, because its arrays are in the model.
    - `trains`: by path, whether each leaf of the adapted layer trained when the set left the model.
        Leaves without an entry train as in a new adapter.
    - `settings`: by path and field, the settings of an adapter that a set lacks, such as dropout.
    - `weights`: by the names of the sets in a sum, this set's weights in that sum, by path.
    - `identity`: as in `NetState`.
    """

    adapters: AdapterSet = dataclasses.field(default_factory=lambda: AdapterSet({}))
    trains: Mapping[str, Mapping[str, bool]] = dataclasses.field(default_factory=dict)
    settings: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    weights: Mapping[frozenset[str], Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    identity: object = dataclasses.field(default_factory=object)


@dataclasses.dataclass(frozen=True)
class NetState:
    """Everything that changes in a net.

    - `module`, `trainable`: the model, and which of its leaves train.
    - `mask`: the mask for the next control.
    - `named`: the sets of adapters with a name, oldest first.
    - `active`: the names of the sets in `module`, in the order of a sum's weights.
    - `originals`: by path, the original layers that the adapters in `module` changed.
    - `asked_ranks`: by path, the ranks passed to `lora`, which a small layer clamps.
    - `identity`: identifies the adapters in `module`, whatever their values; `None` without
        adapters.
    - `partitioned`: the `identity` at the last `partition`.
    - `updated`: each `identity` that needs no warning of a missing update, because the update came
        or the warning was given.
    - `warned_of_complex`: whether the warning of complex arrays was given.
    - `enabled`: in a block without adapters, the state before the block.
    """

    module: PyTree
    trainable: PyTree[bool]
    mask: MaskLike | None = None
    named: Mapping[str, NamedAdapters] = dataclasses.field(default_factory=dict)
    active: tuple[str, ...] = ()
    originals: Mapping[str, Original] = dataclasses.field(default_factory=dict)
    asked_ranks: Mapping[str, int] = dataclasses.field(default_factory=dict)
    identity: object = None
    partitioned: object = UNKNOWN
    updated: frozenset[object] = frozenset()
    warned_of_complex: bool = False
    enabled: "NetState | None" = None

    @classmethod
    def of(cls, model: PyTree) -> "NetState":
        """The state of a new net."""
        identity = object() if holds_adapters(model) else None
        trainable = partial_lora_trainable_filter(model)
        return cls(model, trainable, identity=identity).with_sum_named()

    @property
    def is_sum(self) -> bool:
        """Whether a layer of the model has a sum of sets."""
        return any(members_of(type(adapter)) for _, adapter in adapted_layers(self.module))

    @property
    def needs_update(self) -> bool:
        """Whether `partition` returned the adapters, and `update` was not called."""
        was_returned = self.identity is not None and self.partitioned is self.identity
        return was_returned and self.identity not in self.updated

    def trained_outside(self) -> list[str]:
        """The paths of the arrays that train and belong to no adapter."""
        masks = self.trainable, lora_trainable_filter(self.module)
        outside = jax.tree.map(lambda trains, in_adapter: trains and not in_adapter, *masks)
        return [path_str(keys) for keys, trains in jtu.tree_leaves_with_path(outside) if trains]

    def original_layers(self) -> dict[str, Any]:
        """By path, the originals of the layers that adapters changed, unless they were trained."""
        layers: dict[str, Any] = {}
        for path, adapter in adapted_layers(self.module):
            if path in self.originals:
                layer, base = self.originals[path]
                # Training replaces the arrays of the base.
                if all(map(operator.is_, jax.tree.leaves(adapter.base), jax.tree.leaves(base))):
                    layers[path] = layer
        return layers

    # --- training

    def training(self, *, train: bool, adapters_alone: bool = False) -> "NetState":
        """This state, with the mask's leaves trained or frozen. An empty selection warns.

        Without a mask, `train=True` is as in a new net: adapters train, and so do the arrays
        outside of adapted layers.

        - `adapters_alone`: whether only the adapters' arrays may train, and all others are frozen.
        """
        if self.mask is None and train and not adapters_alone:
            trainable = partial_lora_trainable_filter(self.module)
            return dataclasses.replace(self, trainable=trainable)
        chosen = parse_mask(self.module, True if self.mask is None else self.mask)
        possible = (lora_trainable_filter if adapters_alone else may_train)(self.module)
        if adapters_alone and not any(jax.tree.leaves(possible)):
            raise SelectionError(
                "The model has no adapters that can train. net.lora(...) makes some, and "
                "net.activate(name) puts named ones into the model (of a sum, `train` names them)."
            )
        selected = jax.tree.map(operator.and_, chosen, possible)
        if self.mask is not None and not any(jax.tree.leaves(selected)):
            paths = [path for path, could in _by_path(possible).items() if could]
            near = nearest(self.mask, paths) if isinstance(self.mask, str) else paths
            shown = bullets(map(show_path, near), 5)
            warn(f"The mask selects nothing that could train. These leaves could:\n{shown}")
        trains = jax.tree.map(
            lambda old, now: train if now else old and not adapters_alone, self.trainable, selected
        )
        return dataclasses.replace(self, trainable=trains, mask=None)

    def with_update(self, values: PyTree) -> "NetState":
        """This state, with new values of the leaves that train."""
        expected, frozen = eqx.partition(self.module, self.trainable)
        _check_update(expected, values)
        if self.partitioned not in (UNKNOWN, self.identity):
            raise SelectionError(
                "The model's adapters were exchanged after the last `net.partition()`, so this "
                "update may have values of other adapters. Call `net.partition()` once more."
            )
        if self.partitioned is not UNKNOWN and is_traced(values) and not is_traced(expected):
            raise SelectionError(
                "net.update(...) was called inside of a JAX transformation (jit, grad, vmap). Its "
                "values are gone when it ends. Call `eqx.combine(trainable, frozen)` inside, and "
                "update the net with the arrays that the transformed function returns."
            )
        module, updated = eqx.combine(values, frozen), self.updated | {self.identity}
        return dataclasses.replace(self, module=module, updated=updated)

    # --- adapters come into the model

    def adapted(
        self,
        module: PyTree,
        originals: Mapping[str, Original],
        asked_ranks: Mapping[str, int],
        replaced: Container[str] = (),
    ) -> "NetState":
        """This state, with `module`, whose new adapters changed `originals`."""
        return dataclasses.replace(
            self,
            module=module,
            trainable=carry_to_adapted(self.trainable, module, replaced),
            originals=_without(self.originals, replaced) | dict(originals),
            asked_ranks=_without(self.asked_ranks, replaced) | dict(asked_ranks),
            identity=object(),
        )

    def loaded(
        self, path: FilePath, wrappers: Classes, registry: Registry, strict: Strict
    ) -> tuple["NetState", Collection[str]]:
        """This state, with the adapters of a file, and the paths of replaced adapters."""
        # A replaced adapter may contain a changed layer (PiSSA), so plain layers are wrapped.
        plain, originals = self.plain().module, self.original_layers()
        contents = read_for(path)
        module, loaded = load(self.module, contents, wrappers, registry, strict, originals)
        if not loaded:
            return self, ()
        replaced = [path for path, _ in adapted_layers(self.module) if path in loaded]
        originals = {p: x for p, x in originals_of(plain, module).items() if p in loaded}
        return self.adapted(module, originals, {}, loaded), replaced

    def with_set(self, name: str) -> "NetState":
        """This state, with the set of that name in the model, which has no adapters."""
        stored = self.named[name]
        module = map_adapters(
            lambda path, new: with_settings(new, stored.settings.get(path, {})),
            put_around(self.module, stored.adapters),
        )
        state = self._activated(module, (name,), stored.trains)
        originals = originals_of(self.module, module)
        return dataclasses.replace(state, originals=originals, identity=stored.identity)

    def with_sum(
        self, names: tuple[str, ...], weights: Weights, train: Collection[str]
    ) -> "NetState":
        """This state, with the sum of these sets in the model, which has no adapters.

        Without numbers in `weights`, the weights are as in the last sum of these sets.
        """
        if is_traced(weights):
            raise SelectionError(
                "A net cannot store traced `weights`. Call `jno.lora.sum_adapters(model, sets, "
                "weights=weights)` inside of the transformation; it changes no net."
            )
        train = list(train)
        sets = {name: self.named[name] for name in names}
        adapters = {name: stored.adapters for name, stored in sets.items()}
        sum_adapters = moved("jno.lora", "sum_adapters")
        module = sum_adapters(self.module, adapters, weights=weights, train=train)
        former = {name: stored.weights.get(frozenset(names), {}) for name, stored in sets.items()}

        def weighted(path: str, adapter: Any) -> Any:
            new = jnp.ones_like(adapter.weights[..., 0])  # for a layer that was in no sum before
            columns = [former[member.name].get(path, new) for member in adapter.members]
            return eqx.tree_at(lambda a: a.weights, adapter, jnp.stack(columns, axis=-1))

        if not isinstance(weights, Mapping) and all(former.values()):
            module = map_adapters(weighted, module)
        trains = {
            path: {
                f"trained/{name}/{leaf}": flag
                for name in adapter.trained
                for leaf, flag in sets[name].trains.get(path, {}).items()
            }
            for path, adapter in adapted_layers(module)
        }
        state = self._activated(module, names, trains)
        masks = [mask.trained for _, mask in adapted_layers(state.trainable)]
        for name in train:
            if not any(any(jtu.tree_leaves(trained.get(name, {}))) for trained in masks):
                warn(
                    f"No array of the adapters {name!r} trains, because all were frozen before. "
                    f'net.mask("trained/{name}/").unfreeze() lets them train.'
                )
        return state

    def _activated(
        self, module: PyTree, names: tuple[str, ...], trains: Mapping[str, Mapping[str, bool]]
    ) -> "NetState":
        """This state, with these sets in `module`. `trains` is as in `NamedAdapters`."""

        def restore(path: str, _: Any, mask: Any) -> Any:
            saved = trains.get(path, {})
            return jtu.tree_map_with_path(lambda keys, new: saved.get(path_str(keys), new), mask)

        trainable = map_adapters(restore, module, carry_to_adapted(self.trainable, module))
        empty = AdapterSet({})
        active = {name: dataclasses.replace(self.named[name], adapters=empty) for name in names}
        return dataclasses.replace(
            self,
            module=module,
            trainable=trainable,
            named={**self.named, **active},
            active=names,
            identity=object(),
        )

    # --- names

    def named_adapters(self, name: str) -> AdapterSet:
        """The set of that name, with its current values."""
        if name not in self.active:
            return self.named[name].adapters
        return self.sets_of_sum()[name] if self.is_sum else extract_adapters(self.module)

    def sets_of_sum(self) -> dict[str, AdapterSet]:
        """By name, the sets whose sum is in the model, with their current values."""
        adapters = extract_adapters(self.module).adapters if self.is_sum else {}
        sums = {path: x for path, x in adapters.items() if members_of(x.wrapper)}
        return moved("jno.lora", "split_adapters")(AdapterSet(sums)) if sums else {}

    def with_sum_named(self) -> "NetState":
        """This state, with the names of the sets in a sum that came with a model or a file."""
        new = {name: NamedAdapters() for name in self.sets_of_sum()}
        if not new:
            return self
        return dataclasses.replace(self, named={**self.named, **new}, active=(*new,))

    # --- adapters leave the model

    def plain(self) -> "NetState":
        """This state, without adapters and their names. Untrained layers are the originals."""
        originals = self.original_layers()
        module = map_adapters(lambda path, adapter: originals.get(path, adapter), self.module)
        return self._without_adapters(unwrap_lora(module))

    def merged(self) -> "NetState":
        """This state, with the adapters merged into the layers, and without their names."""
        return self._without_adapters(merge_lora(self.module))

    def disabled(self) -> "NetState":
        """This state, as in a block without adapters."""
        if self.enabled is not None:
            return self
        return dataclasses.replace(self.plain(), mask=None, named=self.named, enabled=self)

    def deactivated(self) -> "NetState":
        """This state, with the model's adapters stored under their names.

        **Raises:** `SelectionError` if the model has adapters without a name.
        """
        if self.is_sum:
            stored = self._members()
        elif self.active:
            (name,) = self.active
            masks = {path: _by_path(mask) for path, mask in adapted_layers(self.trainable)}
            settings = {path: settings_of(adapter) for path, adapter in adapted_layers(self.module)}
            adapters, weights = extract_adapters(self.module), self.named[name].weights
            current = NamedAdapters(adapters, masks, settings, weights, identity=self.identity)
            stored = {name: current}
        elif holds_adapters(self.module):
            raise SelectionError(
                "The model carries adapters without a name, which would be lost. Call "
                "net.add_adapter(name) to keep them, or net.unwrap() to drop them."
            )
        else:
            stored = {}
        return dataclasses.replace(self.plain(), named={**self.named, **stored})

    def _without_adapters(self, module: PyTree) -> "NetState":
        return dataclasses.replace(
            self,
            module=module,
            trainable=carry_to_plain(self.trainable, self.module, module),
            named=_without(self.named, self.active),
            active=(),
            originals={},
            asked_ranks={},
            identity=None,
        )

    def _members(self) -> dict[str, NamedAdapters]:
        """The sets of the sum in the model, with their values, weights and masks."""
        layers = list(adapted_layers(self.module, self.trainable))
        if plain := [path for path, adapter, _ in layers if not members_of(type(adapter))]:
            raise SelectionError(
                "The model carries adapters without a name beside a sum of adapters, which would "
                f"be lost:\n{bullets(map(show_path, plain), 5)}\n"
                "Call net.merge() or net.unwrap(). extract_adapters(net.module) has all adapters."
            )
        weights: dict[str, dict[str, Any]] = {name: {} for name in self.active}
        trains = {name: dict(self.named[name].trains) for name in self.active}
        for path, adapter, mask in layers:
            for index, member in enumerate(adapter.members):
                weights[member.name][path] = adapter.weights[..., index]
                if member.trains:
                    now = _by_path(mask.trained[member.name])
                    trains[member.name][path] = {**trains[member.name].get(path, {}), **now}
        return {
            name: dataclasses.replace(
                self.named[name],
                adapters=adapters,
                trains=trains[name],
                weights={**self.named[name].weights, frozenset(self.active): weights[name]},
                identity=object(),
            )
            for name, adapters in self.sets_of_sum().items()
        }


def _without(by_key: Mapping[str, T], keys: Container[str]) -> dict[str, T]:
    return {key: value for key, value in by_key.items() if key not in keys}


def _by_path(tree: Any) -> dict[str, Any]:
    return {path_str(keys): leaf for keys, leaf in jtu.tree_leaves_with_path(tree)}


def originals_of(plain: PyTree, adapted: PyTree) -> dict[str, Original]:
    """By path, the layers of `plain` that the adapters of `adapted` change."""
    return {
        path: (layer, adapter.base)
        for path, adapter, layer in adapted_layers(adapted, plain)
        if not is_adapter(layer) and type(adapter).unwrap is not LoRAWrapper.unwrap
    }


def _check_update(expected: PyTree, given: PyTree) -> None:
    advice = "Pass the tree that `net.partition()` returned, with new values."
    want, got = _by_path(expected), _by_path(given)
    lines = [f"{show_path(p)}: trained here, missing in the update" for p in want.keys() - got]
    lines += [f"{show_path(p)}: not a trainable leaf of this net" for p in got.keys() - want]
    for path in want.keys() & got.keys():
        old, new = show_array(want[path]), got[path]
        new = show_array(new) if eqx.is_array(new) else repr(new)
        if old != new:
            lines.append(f"{show_path(path)}: expected {old}, got {new}")
    if lines:
        shown = bullets(sorted(lines))
        raise SelectionError(f"The update does not fit this net:\n{shown}\n{advice}")
    if jtu.tree_structure(expected) != jtu.tree_structure(given):
        raise SelectionError(f"The update has other classes or static fields. {advice}")
