"""The state of a net at one time: a model, and which of its arrays train."""

import dataclasses
import operator
import re
from collections.abc import Container, Mapping

import jax
import jax.tree_util as jtu
from jaxtyping import PyTree

from .._errors import warn
from .._merge import merge_lora
from .._paths import bullets, nearest, path_str, show_path
from .._planning import MaskLike, parse_mask
from .._trainability import (
    carry_to_adapted,
    carry_to_plain,
    may_train,
    partial_lora_trainable_filter,
)
from .._tree import holds_adapters
from ._originals import Original, originals_of, unwrapped_exactly


@dataclasses.dataclass(frozen=True)
class NetState:
    """A model, which of its arrays train, and the original layers that its adapters changed.

    - `whose`: an object that stands for its adapters, whatever their values. `None` without any.
    """

    module: PyTree
    trainable: PyTree[bool]
    originals: Mapping[str, Original] = dataclasses.field(default_factory=dict)
    whose: object = dataclasses.field(default_factory=object)

    @classmethod
    def of(cls, model: PyTree) -> "NetState":
        """The state of a new net: everything trains but the layers in adapters."""
        return cls(model, partial_lora_trainable_filter(model), whose=None)

    @property
    def is_adapted(self) -> bool:
        """Whether the model carries any adapter."""
        return holds_adapters(self.module)

    def adapted(self, module: PyTree) -> "NetState":
        """With the model `module`, which has more adapted layers."""
        if module is self.module:
            return self
        return self.readapted(module, originals_of(self.module, module))

    def readapted(
        self, module: PyTree, originals: Mapping[str, Original], paths: Container[str] = ()
    ) -> "NetState":
        """With the model `module`, which has new adapters.

        - `originals`: the original layers that the new adapters changed.
        - `paths`: where a new adapter replaces another one.
        """
        others = {path: layer for path, layer in self.originals.items() if path not in paths}
        trainable = carry_to_adapted(self.trainable, module, paths)
        return NetState(module, trainable, {**others, **originals})

    def plain(self) -> "NetState":
        """Without adapters. Each layer takes the state of its base."""
        return self._without_adapters(unwrapped_exactly(self.module, self.originals))

    def merged(self) -> "NetState":
        """With every adapter folded into its layer, which takes the state of its base."""
        return self._without_adapters(merge_lora(self.module))

    def _without_adapters(self, module: PyTree) -> "NetState":
        return NetState(module, carry_to_plain(self.trainable, self.module, module), whose=None)

    def training(self, mask: MaskLike | None, *, train: bool) -> "NetState":
        """With the leaves that `mask` selects trained, or not. A mask that selects none warns.

        Without a mask, these are all leaves but those of layers in adapters.
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


def _selects_nothing(mask: MaskLike, possible: PyTree[bool]) -> str:
    regex = mask.pattern if isinstance(mask, re.Pattern) else mask
    if not isinstance(regex, str):
        return "The mask given selects nothing that could train; nothing was changed."
    paths = [path_str(keys) for keys, could in jtu.tree_leaves_with_path(possible) if could]
    near = map(show_path, nearest(regex, paths))
    return (
        f"The mask {regex!r} selects nothing that could train; nothing was changed. The nearest "
        f"paths are:\n{bullets(near)}"
    )
