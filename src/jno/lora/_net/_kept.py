"""Sets of adapters that a net keeps out of its model."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.tree_util as jtu

from .._sets import AdapterSet, extract_adapters, put_around
from .._trainability import carry_to_adapted
from .._tree import adapted_layers, map_adapters
from ._originals import originals_of
from ._state import NetState


@dataclasses.dataclass(frozen=True)
class Kept:
    """A set of adapters that is not in the model.

    - `trains`: by path, which leaves of the adapted layer trained when it was put away. At other
        paths, the layer trains as one with a new adapter does.
    - `whose`: stands for the adapters, as in `NetState`.
    """

    adapters: AdapterSet
    trains: Mapping[str, tuple[bool, ...]] = dataclasses.field(default_factory=dict)
    whose: object = dataclasses.field(default_factory=object)

    @classmethod
    def of(cls, state: NetState) -> "Kept":
        """The adapters of a model."""
        masks = {path: tuple(jax.tree.leaves(m)) for path, m in adapted_layers(state.trainable)}
        return cls(extract_adapters(state.module), masks, state.whose)

    def put_into(self, plain: NetState) -> NetState:
        """A model without adapters, with these."""
        module = put_around(plain.module, self.adapters)

        def restore(path: str, adapter: Any, mask: Any) -> Any:
            if path not in self.trains:
                return mask
            return jtu.tree_unflatten(jtu.tree_structure(adapter), self.trains[path])

        trainable = map_adapters(restore, module, carry_to_adapted(plain.trainable, module))
        return NetState(module, trainable, originals_of(plain.module, module), self.whose)
