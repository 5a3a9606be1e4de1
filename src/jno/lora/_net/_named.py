"""Several adapters of one model, by name: one set is in the model, the others are kept."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.tree_util as jtu

from .._contract import is_wrapper
from .._errors import SelectionError
from .._paths import KeyPath, bullets, nearest, path_str
from .._sets import AdapterSet, check_set, extract_adapters, misfits, put_around
from .._trainability import carry_to_adapted
from ._originals import originals_of
from ._state import NetState


@dataclasses.dataclass(frozen=True)
class Kept:
    """A set of adapters that is not in the model.

    - `trains`: by path, which leaves of the adapted layer trained when it was put away. A path
        that is missing trains as a new adapter does.
    - `whose`: stands for it, as in `NetState`.
    """

    adapters: AdapterSet
    trains: Mapping[str, tuple[bool, ...]] = dataclasses.field(default_factory=dict)
    whose: object = dataclasses.field(default_factory=object)

    @classmethod
    def of(cls, state: NetState) -> "Kept":
        """The adapters of a model."""
        masks = jtu.tree_leaves_with_path(state.trainable, is_leaf=is_wrapper)
        return cls(
            extract_adapters(state.module),
            {path_str(k): tuple(jax.tree.leaves(mask)) for k, mask in masks if is_wrapper(mask)},
            state.whose,
        )

    def put_into(self, plain: NetState) -> NetState:
        """A model without adapters, with these."""
        module = put_around(plain.module, self.adapters, drop_others=True)

        def recorded(keys: KeyPath, node: Any, mask: Any) -> Any:
            trains = self.trains.get(path_str(keys)) if is_wrapper(node) else None
            return mask if trains is None else jtu.tree_unflatten(jtu.tree_structure(node), trains)

        trainable = jtu.tree_map_with_path(
            recorded, module, carry_to_adapted(plain.trainable, module), is_leaf=is_wrapper
        )
        return NetState(module, trainable, originals_of(plain.module, module), self.whose)


@dataclasses.dataclass(frozen=True)
class NamedAdapters:
    """The names of a model's adapters. What changes them returns them as they are then.

    - `kept`: in the order in which they were added. The active ones are in the model, and `None`
        here.
    """

    kept: Mapping[str, Kept | None] = dataclasses.field(default_factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        """Every name, in the order in which they were added."""
        return tuple(self.kept)

    @property
    def active(self) -> str | None:
        """The name of the adapters that are in the model, if they have one."""
        return next((name for name, kept in self.kept.items() if kept is None), None)

    def get(self, name: str, state: NetState) -> AdapterSet:
        """The adapters of that name, as they are now."""
        kept = self.kept[self._known(name)]
        return extract_adapters(state.module) if kept is None else kept.adapters

    def add(self, name: str, adapters: AdapterSet | None, state: NetState) -> "NamedAdapters":
        """Keep `adapters` under a new name; without them, name those that are in the model."""
        if not isinstance(name, str):
            raise SelectionError(f"The name of adapters must be a string, but is {name!r}.")
        if name in self.kept:
            raise SelectionError(
                f"There are adapters called {name!r} already. Choose another name, or call "
                f"net.delete_adapter({name!r}) first."
            )
        if adapters is None:
            if not state.is_adapted:
                raise SelectionError(
                    f"The model carries no adapters that could be called {name!r}. Call "
                    "net.lora(...) first, or give an AdapterSet."
                )
            if self.active is not None:
                raise SelectionError(
                    f"The model's adapters are called {self.active!r} already. To add a copy, give "
                    f"it: net.add_adapter({name!r}, net.adapter({self.active!r}))"
                )
            return self._with({name: None})
        check_set(adapters, "adapters")
        problems = misfits(state.plain().module, adapters)
        if problems:
            raise SelectionError(
                f"The adapters to be called {name!r} do not fit the model:\n{bullets(problems)}"
            )
        return self._with({name: Kept(adapters)})

    def activate(self, name: str, state: NetState) -> tuple[NetState, "NamedAdapters"]:
        """The model with the adapters of that name in the place of those it carries."""
        kept = self.kept[self._known(name)]
        if kept is None:
            return state, self
        put_away = self._put_away(state)
        return kept.put_into(state.plain()), self._with({**put_away, name: None})

    def deactivate(self, state: NetState) -> tuple[NetState, "NamedAdapters"]:
        """The model without adapters."""
        return state.plain(), self._with(self._put_away(state))

    def delete(self, name: str, state: NetState) -> tuple[NetState, "NamedAdapters"]:
        """Forget the adapters of that name; those in the model are dropped from it."""
        if self.kept[self._known(name)] is None:
            state = state.plain()
        return state, self._without(name)

    def without_active(self) -> "NamedAdapters":
        """The model's adapters are gone, and with them their name."""
        return self if self.active is None else self._without(self.active)

    def _with(self, entries: Mapping[str, Kept | None]) -> "NamedAdapters":
        return NamedAdapters({**self.kept, **entries})

    def _without(self, name: str) -> "NamedAdapters":
        return NamedAdapters({other: kept for other, kept in self.kept.items() if other != name})

    def _put_away(self, state: NetState) -> dict[str, Kept]:
        """What the model carries, by its name; empty if it carries nothing."""
        if self.active is not None:
            return {self.active: Kept.of(state)}
        if state.is_adapted:
            raise SelectionError(
                "The model carries adapters without a name, which would be lost. Call "
                "net.add_adapter(name) to keep them, or net.unwrap() to drop them."
            )
        return {}

    def _known(self, name: str) -> str:
        if name in self.kept:
            return name
        near = nearest(str(name), self.kept, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else "; none has a name."
        raise SelectionError(f"No adapters are called {name!r}{hint}")
