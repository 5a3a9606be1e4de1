"""`Holder`: the state behind a `Net`, and how it changes."""

import copy
from collections.abc import Mapping
from typing import Any, TypeVar

from jaxtyping import PyTree

from .._contract import Handle, expect_model
from .._errors import SelectionError
from .._planning import MaskLike
from .._registry import Registry, default_registry
from ._kept import Kept
from ._state import NetState

H = TypeVar("H", bound="Holder")


class Holder(Handle):
    """Holds a model, which of its arrays train, a pending mask and the named adapters."""

    def __init__(self, model: PyTree, registry: Registry | None):
        expect_model(model, "Net")
        self._registry = default_registry(registry)
        self._now = NetState.of(model)
        self._mask: MaskLike | None = None
        # All adapters with a name, oldest first. Those in the model are `None` here.
        self._named: Mapping[str, Kept | None] = {}
        # The state with adapters, while `disabled` shows the model without them.
        self._disabled: NetState | None = None

    @property
    def module(self) -> Any:
        """The current model, with its adapters."""
        return self._now.module

    @property
    def trainable(self) -> PyTree[bool]:
        """Which leaves train: Python bools in the structure of `module`."""
        return self._now.trainable

    def _become(self: H, state: NetState, named: Mapping[str, Kept | None] | None = None) -> H:
        # Ctrl-C is handled where Python calls a function. There is no call between the first
        # assignment and the last, so it finds the net either as it was or as it is to be.
        self._now = state
        if named is not None:
            self._named = named
        self._mask = None
        return self

    def _refuse_mask(self, verb: str) -> None:
        self._refuse_disabled(verb)
        if self._mask is not None:
            raise SelectionError(
                f"A mask is pending, but {verb} takes no account of one. Use the mask up first (it "
                f"is for the next lora, plan, freeze or unfreeze), then call net.{verb}(...)."
            )

    def _refuse_disabled(self, verb: str) -> None:
        if self._disabled is not None:
            raise SelectionError(
                f"net.{verb}(...) was called in a `with net.disabled()` block, at whose end the "
                "net becomes what it was before. Call it after the block."
            )

    def __copy__(self: H) -> H:
        made = object.__new__(type(self))
        made.__dict__.update(self.__dict__)
        if made._disabled is not None:  # the block ends for this net, not for the copy
            made._now, made._disabled = made._disabled, None
        return made

    def __deepcopy__(self: H, memo: dict[int, Any]) -> H:
        # All that it holds is immutable, and JAX's own functions do not survive a deep copy.
        return copy.copy(self)
