"""The state of a net at one time, and its inactive adapters."""

import dataclasses
import operator
import re
from collections.abc import Collection, Container, Mapping
from types import MappingProxyType
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.tree_util as jtu
from jaxtyping import PyTree

from .._checkpoint import Classes, FilePath, Strict, load, with_loaded
from .._contract import LoRAWrapper, is_adapter, is_traced
from .._errors import SelectionError, warn
from .._merge import merge_lora, unwrap_lora
from .._paths import bullets, nearest, path_str, show_array, show_path
from .._planning import MaskLike, parse_mask
from .._registry import Registry
from .._sets import AdapterSet, extract_adapters, put_around, settings_of, with_settings
from .._trainability import (
    carry_to_adapted,
    carry_to_plain,
    lora_trainable_filter,
    may_train,
    partial_lora_trainable_filter,
)
from .._tree import adapted_layers, map_adapters, replace_layers

T = TypeVar("T")

# The identity of the adapters of a tree that comes from no net.
UNKNOWN = object()

# A layer as it was before adapting, and the `base` that an adapter made of it. (PiSSA makes a
# residual, and its `unwrap` restores the weight only up to rounding.)
Original = tuple[Any, Any]


@dataclasses.dataclass(frozen=True)
class NetState:
    """A model, which of its arrays train, and the original layers that its adapters changed.

    - `identity`: an object that stands for its adapters, whatever their values; else `None`.
    - `asked_ranks`: by path, the ranks that `lora` was asked for, which a small layer clamps.
    - `entered`: by name, the sets that are in `module`: their masks and weights before.
    """

    module: PyTree
    trainable: PyTree[bool]
    originals: Mapping[str, Original] = dataclasses.field(default_factory=dict)
    identity: object = dataclasses.field(default_factory=object)
    asked_ranks: Mapping[str, int] = dataclasses.field(default_factory=dict)
    entered: Mapping[str, "InactiveAdapters"] = dataclasses.field(default_factory=dict)

    def adapted(
        self,
        module: PyTree,
        originals: Mapping[str, Original],
        replaced: Container[str] = (),
        asked_ranks: Mapping[str, int] = MappingProxyType({}),
    ) -> "NetState":
        """With `module`, whose new adapters changed `originals`, and replaced adapters."""
        trainable = carry_to_adapted(self.trainable, module, replaced)
        originals = _without(self.originals, replaced) | dict(originals)
        asked_ranks = _without(self.asked_ranks, replaced) | dict(asked_ranks)
        return dataclasses.replace(
            self,
            module=module,
            trainable=trainable,
            originals=originals,
            identity=object(),
            asked_ranks=asked_ranks,
        )

    def loaded(
        self, path: FilePath, wrappers: Classes, registry: Registry, strict: Strict
    ) -> tuple["NetState", Collection[str]]:
        """With the adapters of a file, and the paths of the adapters that they replaced."""
        # A replaced adapter may hold a changed layer (PiSSA), so plain layers are wrapped.
        plain = self.plain().module
        layers = {"plain": plain, "originals": self.original_layers()}
        loaded = load(self.module, path, wrappers, registry, strict=strict, **layers)
        if not loaded:
            return self, ()
        replaced = [path for path, _ in adapted_layers(self.module) if path in loaded]
        originals = originals_of(plain, replace_layers(plain, loaded))
        return self.adapted(with_loaded(self.module, loaded), originals, loaded), replaced

    def updated(self, values: PyTree, partitioned: object) -> "NetState":
        """With new values of the leaves that train, for the adapters of identity `partitioned`."""
        expected, frozen = eqx.partition(self.module, self.trainable)
        _check_update(expected, values)
        if partitioned not in (UNKNOWN, self.identity):
            raise SelectionError(
                "The model's adapters were exchanged after the last `net.partition()`, so this "
                "update may hold the values of the former adapters. Update the net before its "
                "adapters are exchanged, or train the result of a new `net.partition()`."
            )
        if partitioned is not UNKNOWN and is_traced(values) and not is_traced(expected):
            raise SelectionError(
                "net.update(...) was called inside of a JAX transformation (jit, grad, vmap). Its "
                "values are gone when it ends. Inside, put the model together with "
                "`eqx.combine(trainable, frozen)`, and update the net with the arrays that the "
                "transformed function returns."
            )
        return dataclasses.replace(self, module=eqx.combine(values, frozen))

    def plain(self) -> "NetState":
        """Without adapters. Layers that were not trained are the originals."""
        originals = self.original_layers()
        module = map_adapters(lambda path, adapter: originals.get(path, adapter), self.module)
        return self._without_adapters(unwrap_lora(module))

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

    def merged(self) -> "NetState":
        return self._without_adapters(merge_lora(self.module))

    def _without_adapters(self, module: PyTree) -> "NetState":
        return NetState(module, carry_to_plain(self.trainable, self.module, module), identity=None)

    def trained_outside(self) -> list[str]:
        """The paths of the arrays that train and belong to no adapter."""
        masks = self.trainable, lora_trainable_filter(self.module)
        outside = jax.tree.map(lambda trains, in_adapter: trains and not in_adapter, *masks)
        return [path_str(keys) for keys, trains in jtu.tree_leaves_with_path(outside) if trains]

    def training(self, mask: MaskLike | None, *, train: bool) -> "NetState":
        """With the selected leaves trained, or not. A mask that selects nothing warns.

        Without a mask, `train` selects all leaves outside adapted layers.
        """
        if mask is None and train:
            return dataclasses.replace(self, trainable=partial_lora_trainable_filter(self.module))
        chosen, possible = parse_mask(self.module, mask is None or mask), may_train(self.module)
        selected = jax.tree.map(operator.and_, chosen, possible)
        if mask is not None and not any(jax.tree.leaves(selected)):
            warn(_selects_nothing(mask, possible))
        trains = jax.tree.map(lambda old, now: train if now else old, self.trainable, selected)
        return dataclasses.replace(self, trainable=trains)


@dataclasses.dataclass(frozen=True)
class InactiveAdapters:
    """A set of adapters that is not in the model.

    - `trains`: by path, whether each leaf of the adapted layer trained when the set left the model.
        Leaves without an entry train as in a new adapter.
    - `settings`: by path and field, the settings of an adapter that no set holds, such as dropout.
    - `weights`: by the names of the sets of a sum, the weights of this set in that sum, by path.
    """

    adapters: AdapterSet
    trains: Mapping[str, Mapping[str, bool]] = dataclasses.field(default_factory=dict)
    settings: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    weights: Mapping[frozenset[str], Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    identity: object = dataclasses.field(default_factory=object)

    def without_arrays(self) -> "InactiveAdapters":
        """For the time in which the set is in the model, which has its arrays."""
        return dataclasses.replace(self, adapters=AdapterSet({}))

    @classmethod
    def of(cls, state: NetState, name: str) -> "InactiveAdapters":
        masks = {path: _by_path(mask) for path, mask in adapted_layers(state.trainable)}
        settings = {path: settings_of(adapter) for path, adapter in adapted_layers(state.module)}
        weights = state.entered[name].weights if name in state.entered else {}
        return cls(extract_adapters(state.module), masks, settings, weights, state.identity)

    def put_into(self, plain: NetState) -> NetState:
        """The model of `plain`, which has no adapters, with this set."""
        module = put_around(plain.module, self.adapters)
        module = map_adapters(lambda p, new: with_settings(new, self.settings.get(p, {})), module)

        def restore(path: str, _: Any, mask: Any) -> Any:
            saved = self.trains.get(path, {})
            return jtu.tree_map_with_path(lambda keys, new: saved.get(path_str(keys), new), mask)

        trainable = map_adapters(restore, module, carry_to_adapted(plain.trainable, module))
        return NetState(module, trainable, originals_of(plain.module, module), self.identity)


def _without(by_path: Mapping[str, T], paths: Container[str]) -> dict[str, T]:
    return {path: value for path, value in by_path.items() if path not in paths}


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
        start = f"The update does not fit this net{_guess_at_update(want, got, given)}:"
        raise SelectionError(f"{start}\n{bullets(sorted(lines))}\n{advice}")
    if jtu.tree_structure(expected) != jtu.tree_structure(given):
        raise SelectionError(f"The update has other classes or static fields. {advice}")


def _guess_at_update(want: Mapping[str, Any], got: Mapping[str, Any], given: PyTree) -> str:
    if type(given) is tuple and len(given) == 2:
        return ". It is a pair: both halves that `net.partition()` returned?"
    if want and got.keys() > want.keys():
        return ". It holds every array that trains, and more: the whole model?"
    if got and not got.keys() & want.keys():
        return ". None of its arrays trains here: the frozen half, or from before a merge?"
    return ""


def _selects_nothing(mask: MaskLike, possible: PyTree[bool]) -> str:
    regex = mask.pattern if isinstance(mask, re.Pattern) else mask
    shown = repr(regex) if isinstance(regex, str) else "given"
    message = f"The mask {shown} selects nothing that could train; nothing was changed."
    if not isinstance(regex, str):
        return message
    paths = [path_str(keys) for keys, could in jtu.tree_leaves_with_path(possible) if could]
    return f"{message} The nearest paths are:\n{bullets(map(show_path, nearest(regex, paths)))}"
