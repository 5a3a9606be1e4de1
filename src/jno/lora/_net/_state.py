"""The state of a net at one time, and the adapters that it keeps out of its model."""

import dataclasses
import operator
import re
from collections.abc import Container, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.tree_util as jtu
from jaxtyping import PyTree

from .._contract import LoRAWrapper, is_adapter, is_traced
from .._errors import SelectionError, warn
from .._merge import merge_lora, unwrap_lora
from .._paths import bullets, nearest, path_str, show_array, show_path
from .._planning import MaskLike, parse_mask
from .._sets import AdapterSet, extract_adapters, put_around
from .._trainability import (
    carry_to_adapted,
    carry_to_plain,
    lora_trainable_filter,
    may_train,
    partial_lora_trainable_filter,
)
from .._tree import adapted_layers, map_adapters

# Stands for the adapters of a tree that no net gave.
UNKNOWN = object()


# A layer as it was before adapting, and the `base` that an adapter made of it. PiSSA's is a
# residual: its `unwrap` restores the weight only up to rounding.
Original = tuple[Any, Any]


@dataclasses.dataclass(frozen=True)
class NetState:
    """A model, which of its arrays train, and the original layers that its adapters changed.

    - `whose`: an object that stands for its adapters, whatever their values. `None` without any.
    """

    module: PyTree
    trainable: PyTree[bool]
    originals: Mapping[str, Original] = dataclasses.field(default_factory=dict)
    whose: object = dataclasses.field(default_factory=object)

    def adapted(
        self, module: PyTree, originals: Mapping[str, Original], replaced: Container[str] = ()
    ) -> "NetState":
        """With the model `module`, whose new adapters changed the layers `originals`.

        - `replaced`: the paths at which a new adapter replaces another one.
        """
        others = {path: layer for path, layer in self.originals.items() if path not in replaced}
        trainable = carry_to_adapted(self.trainable, module, replaced)
        return NetState(module, trainable, {**others, **originals})

    def updated(self, values: PyTree, whose: object) -> "NetState":
        """With new values of the leaves that train.

        - `whose`: of the state that gave the tree, or `UNKNOWN`.

        **Raises:** `SelectionError` if they do not fit, or will be gone with a transformation.
        """
        expected, frozen = eqx.partition(self.module, self.trainable)
        _check_update(expected, values)
        if whose not in (UNKNOWN, self.whose):
            raise SelectionError(
                "The model's adapters were exchanged after the last `net.partition()`, so that "
                "this update may hold the values of the former ones. Update the net before its "
                "adapters are exchanged, or train what another `net.partition()` returns."
            )
        if whose is not UNKNOWN and is_traced(values) and not is_traced(expected):
            raise SelectionError(
                "net.update(...) was called inside of a JAX transformation (jit, grad, vmap), "
                "whose values are gone when it ends. In there, put the model together with "
                "`eqx.combine(trainable, frozen)`, and update the net with what the transformed "
                "function returns."
            )
        return dataclasses.replace(self, module=eqx.combine(values, frozen))

    def plain(self) -> "NetState":
        """Without adapters. Layers are the originals, unless they were trained in an adapter."""

        known = self.original_layers()
        module = map_adapters(lambda path, adapter: known.get(path, adapter), self.module)
        return self._without_adapters(unwrap_lora(module))

    def original_layers(self) -> dict[str, Any]:
        """By path, the layers that their adapters changed, and that were not trained in them."""
        found: dict[str, Any] = {}
        for path, adapter in adapted_layers(self.module):
            layer, base = self.originals.get(path, (None, None))
            # Training a base replaces its arrays by others.
            is_same = map(operator.is_, jax.tree.leaves(adapter.base), jax.tree.leaves(base))
            if path in self.originals and all(is_same):
                found[path] = layer
        return found

    def merged(self) -> "NetState":
        """With every adapter folded into its layer."""
        return self._without_adapters(merge_lora(self.module))

    def _without_adapters(self, module: PyTree) -> "NetState":
        # Each layer takes the state of its base.
        return NetState(module, carry_to_plain(self.trainable, self.module, module), whose=None)

    def trained_outside(self) -> list[str]:
        """The paths of the arrays that train and belong to no adapter."""
        adapters = lora_trainable_filter(self.module)
        others = jax.tree.map(lambda trains, own: trains and not own, self.trainable, adapters)
        return [path_str(keys) for keys, other in jtu.tree_leaves_with_path(others) if other]

    def training(self, mask: MaskLike | None, *, train: bool) -> "NetState":
        """With the selected leaves trained, or not. A mask that selects nothing warns.

        Without a mask, `train` selects all leaves but those of layers in adapters.
        """
        if mask is None and train:
            return dataclasses.replace(self, trainable=partial_lora_trainable_filter(self.module))
        chosen, possible = parse_mask(self.module, mask is None or mask), may_train(self.module)
        selected = jax.tree.map(operator.and_, chosen, possible)
        if mask is not None and not any(jax.tree.leaves(selected)):
            warn(_selects_nothing(mask, possible))
        trainable = jax.tree.map(
            lambda before, now: train if now else before, self.trainable, selected
        )
        return dataclasses.replace(self, trainable=trainable)


@dataclasses.dataclass(frozen=True)
class Kept:
    """A set of adapters that is not in the model.

    - `trains`: by path, whether each leaf of the adapted layer trained when it was put away. Other
        leaves train as those of a new adapter do.
    """

    adapters: AdapterSet
    trains: Mapping[str, Mapping[str, bool]] = dataclasses.field(default_factory=dict)
    whose: object = dataclasses.field(default_factory=object)

    @classmethod
    def of(cls, state: NetState) -> "Kept":
        """The adapters of a model."""
        masks = {path: _by_path(mask) for path, mask in adapted_layers(state.trainable)}
        return cls(extract_adapters(state.module), masks, state.whose)

    def put_into(self, plain: NetState) -> NetState:
        """A model without adapters, with these."""
        module = put_around(plain.module, self.adapters)

        def restore(path: str, _: Any, mask: Any) -> Any:
            own = self.trains.get(path, {})
            return jtu.tree_map_with_path(lambda keys, new: own.get(path_str(keys), new), mask)

        trainable = map_adapters(restore, module, carry_to_adapted(plain.trainable, module))
        return NetState(module, trainable, originals_of(plain.module, module), self.whose)


def _by_path(tree: Any) -> dict[str, Any]:
    return {path_str(keys): leaf for keys, leaf in jtu.tree_leaves_with_path(tree)}


def originals_of(plain: PyTree, adapted: PyTree) -> dict[str, Original]:
    """The layers of `plain`, by path, that are changed inside the adapters of `adapted`."""
    return {
        path: (layer, adapter.base)
        for path, adapter, layer in adapted_layers(adapted, plain)
        if not is_adapter(layer) and type(adapter).unwrap is not LoRAWrapper.unwrap
    }


def _check_update(expected: PyTree, given: PyTree) -> None:
    advice = "Pass the tree that `net.partition()` returned, with new values."
    want, got = _by_path(expected), _by_path(given)
    wrong = [f"{show_path(p)}: trained here, missing in the update" for p in want.keys() - got]
    wrong += [f"{show_path(p)}: not a trainable leaf of this net" for p in got.keys() - want]
    for path in want.keys() & got.keys():
        old, new = show_array(want[path]), got[path]
        new = show_array(new) if eqx.is_array(new) else repr(new)
        if old != new:
            wrong.append(f"{show_path(path)}: expected {old}, got {new}")
    if wrong:
        if type(given) is tuple and len(given) == 2:
            guess = ". It is a pair: both halves that `net.partition()` returned?"
        elif want and got.keys() > want.keys():
            guess = ". It holds all that trains, and more: the whole model?"
        elif got and not got.keys() & want.keys():
            guess = ". None of it trains here: the frozen half, or from before a merge?"
        else:
            guess = ""
        raise SelectionError(
            f"The update does not fit this net{guess}:\n{bullets(sorted(wrong))}\n{advice}"
        )
    if jtu.tree_structure(expected) != jtu.tree_structure(given):
        raise SelectionError(f"The update has other classes or static fields. {advice}")


def _selects_nothing(mask: MaskLike, possible: PyTree[bool]) -> str:
    said = "selects nothing that could train; nothing was changed."
    regex = mask.pattern if isinstance(mask, re.Pattern) else mask
    if not isinstance(regex, str):
        return f"The mask given {said}"
    paths = [path_str(keys) for keys, could in jtu.tree_leaves_with_path(possible) if could]
    near = bullets(map(show_path, nearest(regex, paths)))
    return f"The mask {regex!r} {said} The nearest paths are:\n{near}"
