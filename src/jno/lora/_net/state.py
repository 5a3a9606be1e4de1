"""The state of a `Net`: an immutable value, from which each operation makes a new state."""

import dataclasses
import operator
from collections.abc import Collection, Container, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.tree_util as jtu
from jaxtyping import PyTree

from .._checkpoint.classes import Classes
from .._checkpoint.file import FilePath
from .._checkpoint.reading import Strict, load, read_for
from .._contract.calling import is_traced
from .._contract.wrapper import LoRAWrapper, is_adapter, overrides
from .._errors import SelectionError, warn
from .._merge import merge_lora, unwrap_lora
from .._paths import bullets, nearest, path_str, show_array, show_path
from .._planning.candidates import MaskLike, parse_mask
from .._registry.registry import Registry
from .._sets.members import NamedSets, Trains, Weights, members_of
from .._sets.set import AdapterSet, extract_adapters, put_around, settings_of, with_settings
from .._trainability import (
    carry_to_adapted,
    carry_to_plain,
    lora_trainable_filter,
    may_train,
    partial_lora_trainable_filter,
)
from .._tree import adapted_layers, holds_adapters, map_adapters

_NEVER = object()  # `partition` was not called
COMPLEX = object()  # the arrays that train and are complex


@dataclasses.dataclass(frozen=True)
class Origin:
    """What a net knows of an adapter's past.

    - `layer`, `base`: the layer before adapting, and the adapter's `base`, if the adapter changed
        it. (PiSSA makes a residual, and its `unwrap` restores the weight only up to rounding.)
    - `asked_rank`: the rank passed to `lora`, which a small layer clamps.
    """

    layer: PyTree = None
    base: PyTree = None
    asked_rank: int | None = None

    def untouched(self, adapter: LoRAWrapper) -> bool:
        """Whether `layer` is known, and nobody trained the base."""
        # Training replaces the arrays of the base.
        now, before = jax.tree.leaves(adapter.base), jax.tree.leaves(self.base)
        return self.layer is not None and all(map(operator.is_, now, before))


@dataclasses.dataclass(frozen=True)
class Handout:
    """What `partition` gave out, and `update` took back.

    - `adapters`: identifies the adapters in the model, whatever their values; `None` without any.
    - `given`: `adapters` at the last `partition`.
    - `silent`: what needs no further warning: adapters whose update came, or whose warning was
        given, and `COMPLEX` after the warning of complex arrays.
    """

    adapters: object = None
    given: object = _NEVER
    silent: frozenset[object] = frozenset()

    @property
    def misses_update(self) -> bool:
        """Whether `partition` returned the adapters, and `update` was not called."""
        is_out = self.adapters is not None and self.given is self.adapters
        return is_out and self.adapters not in self.silent

    def exchange(self, adapters: object) -> "Handout":
        """Other adapters came into the model."""
        return dataclasses.replace(self, adapters=adapters)

    def give(self) -> "Handout":
        """`partition` returned the adapters."""
        return dataclasses.replace(self, given=self.adapters)

    def silence(self, *subjects: object) -> "Handout":
        """These need no further warning."""
        return dataclasses.replace(self, silent=self.silent | {*subjects})


@dataclasses.dataclass(frozen=True)
class NetState:
    """Everything that changes in a net.

    - `module`, `trainable`: the model, and which of its leaves train.
    - `registry`: where the net looks up adapters and sums of adapters.
    - `mask`: the mask for the next control.
    - `sets`: the sets of adapters with a name.
    - `origins`: by path, what is known of the past of the adapters in `module`.
    - `handout`: what `partition` gave out.
    """

    module: PyTree
    trainable: PyTree[bool]
    registry: Registry
    mask: MaskLike | None = None
    sets: NamedSets = dataclasses.field(default_factory=NamedSets)
    origins: Mapping[str, Origin] = dataclasses.field(default_factory=dict)
    handout: Handout = dataclasses.field(default_factory=Handout)

    @classmethod
    def of(cls, model: PyTree, registry: Registry) -> "NetState":
        """The state of a new net."""
        handout = Handout(object() if holds_adapters(model) else None)
        state = cls(model, partial_lora_trainable_filter(model), registry, handout=handout)
        return state.with_names_of_sum()

    def trained_outside(self) -> list[str]:
        """The paths of the arrays that train and belong to no adapter."""
        masks = self.trainable, lora_trainable_filter(self.module)
        outside = jax.tree.map(lambda trains, in_adapter: trains and not in_adapter, *masks)
        return [path_str(keys) for keys, trains in jtu.tree_leaves_with_path(outside) if trains]

    def original_layers(self) -> dict[str, eqx.Module]:
        """By path, the originals of the layers that adapters changed, unless they were trained."""
        origins = [
            (path, self.origins.get(path, Origin()), adapter)
            for path, adapter in adapted_layers(self.module)
        ]
        return {path: origin.layer for path, origin, x in origins if origin.untouched(x)}

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
        if self.handout.given not in (_NEVER, self.handout.adapters):
            raise SelectionError(
                "The model's adapters were exchanged after the last `net.partition()`, so this "
                "update may have values of other adapters. Call `net.partition()` once more."
            )
        if self.handout.given is not _NEVER and is_traced(values) and not is_traced(expected):
            raise SelectionError(
                "net.update(...) was called inside of a JAX transformation (jit, grad, vmap). Its "
                "values are gone when it ends. Call `eqx.combine(trainable, frozen)` inside, and "
                "update the net with the arrays that the transformed function returns."
            )
        module = eqx.combine(values, frozen)
        handout = self.handout.silence(self.handout.adapters)
        return dataclasses.replace(self, module=module, handout=handout)

    # --- adapters come into the model

    def adapted(
        self, module: PyTree, origins: Mapping[str, Origin], replaced: Container[str] = ()
    ) -> "NetState":
        """This state, with `module`, which has new adapters.

        - `replaced`: the paths of layers that had another adapter before.
        """
        kept = {path: x for path, x in self.origins.items() if path not in replaced}
        return dataclasses.replace(
            self,
            module=module,
            trainable=carry_to_adapted(self.trainable, module, replaced),
            origins=kept | dict(origins),
            handout=self.handout.exchange(object()),
        )

    def loaded(
        self, path: FilePath, wrappers: Classes, registry: Registry, strict: Strict
    ) -> tuple["NetState", Collection[str]]:
        """This state, with the adapters of a file, and the paths of replaced adapters."""
        # A replaced adapter may contain a changed layer (PiSSA), so plain layers are wrapped.
        plain, originals = self.plain().module, self.original_layers()
        module, loaded = load(self.module, read_for(path), wrappers, registry, strict, originals)
        if not loaded:
            return self, ()
        replaced = [path for path, _ in adapted_layers(self.module) if path in loaded]
        origins = {p: x for p, x in origins_of(plain, module).items() if p in loaded}
        return self.adapted(module, origins, loaded), replaced

    def with_set(self, name: str) -> "NetState":
        """This state, with the set of that name in the model, which has no adapters."""
        stored = self.sets.stored[name]
        module = map_adapters(
            lambda path, new: with_settings(new, stored.settings.get(path, {})),
            put_around(self.module, stored.adapters),
        )
        state = self._activated(module, (name,), stored.trains)
        return dataclasses.replace(state, handout=state.handout.exchange(stored.identity))

    def with_sum(
        self, names: tuple[str, ...], weights: Weights, train: Collection[str]
    ) -> "NetState":
        """This state, with the sum of these sets in the model, which has no adapters."""
        sets = {name: self.sets.stored[name] for name in names}
        module, trains = self.registry.sums().activate(self.module, sets, weights, train)
        return self._activated(module, names, trains)

    def _activated(self, module: PyTree, names: tuple[str, ...], trains: Trains) -> "NetState":
        """This state, with these sets in `module`, whose leaves train as in `trains`."""

        def restore(path: str, _: LoRAWrapper, mask: PyTree) -> PyTree:
            saved = trains.get(path, {})
            return jtu.tree_map_with_path(lambda keys, new: saved.get(path_str(keys), new), mask)

        state = self.adapted(module, origins_of(self.module, module))
        trainable = map_adapters(restore, module, state.trainable)
        return dataclasses.replace(state, trainable=trainable, sets=self.sets.activated(names))

    # --- names

    @property
    def is_sum(self) -> bool:
        """Whether a layer of the model has a sum of sets."""
        return any(members_of(type(adapter)) for _, adapter in adapted_layers(self.module))

    def named_adapters(self, name: str) -> AdapterSet:
        """The set of that name, with its current values."""
        if name not in self.sets.active:
            return self.sets.stored[name].adapters
        return self.sets_of_sum()[name] if self.is_sum else extract_adapters(self.module)

    def sets_of_sum(self) -> dict[str, AdapterSet]:
        """By name, the sets whose sum is in the model, with their current values."""
        adapters = extract_adapters(self.module).adapters if self.is_sum else {}
        sums = {path: x for path, x in adapters.items() if members_of(x.wrapper)}
        return self.registry.sums().split(AdapterSet(sums)) if sums else {}

    def with_names_of_sum(self) -> "NetState":
        """This state, with the names of the sets in a sum that came with a model or a file."""
        names = self.sets_of_sum()
        return dataclasses.replace(self, sets=self.sets.activated(names)) if names else self

    # --- adapters leave the model

    def plain(self) -> "NetState":
        """This state, without adapters and their names. Untrained layers are the originals."""
        originals = self.original_layers()
        module = map_adapters(lambda path, adapter: originals.get(path, adapter), self.module)
        return self._without_adapters(unwrap_lora(module))

    def merged(self) -> "NetState":
        """This state, with the adapters merged into the layers, and without their names."""
        return self._without_adapters(merge_lora(self.module))

    def deactivated(self) -> "NetState":
        """This state, with the model's adapters stored under their names.

        **Raises:** `SelectionError` if the model has adapters without a name.
        """
        active = {name: self.sets.stored[name] for name in self.sets.active}
        if self.is_sum:
            active = self.registry.sums().deactivate(self.module, self.trainable, active)
        elif active:
            (name,) = active
            layers = list(adapted_layers(self.module, self.trainable))
            active[name] = dataclasses.replace(
                active[name],
                adapters=extract_adapters(self.module),
                trains={path: _by_path(mask) for path, _, mask in layers},
                settings={path: settings_of(adapter) for path, adapter, _ in layers},
                identity=self.handout.adapters,
            )
        elif holds_adapters(self.module):
            raise SelectionError(
                "The model carries adapters without a name, which would be lost. Call "
                "net.add_adapter(name) to keep them, or net.unwrap() to drop them."
            )
        return dataclasses.replace(self.plain(), sets=NamedSets(self.sets.stored).having(active))

    def _without_adapters(self, module: PyTree) -> "NetState":
        return dataclasses.replace(
            self,
            module=module,
            trainable=carry_to_plain(self.trainable, self.module, module),
            sets=self.sets.without(self.sets.active),
            origins={},
            handout=self.handout.exchange(None),
        )


def _by_path(tree: PyTree) -> dict[str, Any]:
    return {path_str(keys): leaf for keys, leaf in jtu.tree_leaves_with_path(tree)}


def origins_of(plain: PyTree, adapted: PyTree) -> dict[str, Origin]:
    """By path, the layers of `plain` that the adapters of `adapted` change."""
    return {
        path: Origin(layer, adapter.base)
        for path, adapter, layer in adapted_layers(adapted, plain)
        if not is_adapter(layer) and overrides(type(adapter), LoRAWrapper, "unwrap")
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
