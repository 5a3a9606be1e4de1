"""`Naming`: the named adapters of a `Net`, one or several of which are in its model."""

import dataclasses
from collections.abc import Collection
from typing import Any, TypeVar

from jaxtyping import PyTree

from .._checkpoint import Classes, FilePath, Strict
from .._contract import check_adapter_name, is_traced
from .._errors import SelectionError
from .._paths import bullets, nearest, show_path
from .._registry import Registry
from .._sets import AdapterSet, AdapterSum, Weights, check_fit, extract_adapters
from .._tree import holds_adapters
from ._holder import Holder, Named
from ._state import InactiveAdapters
from ._sums import is_sum, sets_now, summed, taken_out, with_names

N = TypeVar("N", bound="Naming")


class Naming(Holder):
    """A holder that puts adapters into its model, and takes them out, by their names."""

    def __init__(self, model: PyTree, registry: Registry | None):
        super().__init__(model, registry)
        if is_sum(self._now):
            self._now = with_names(self._now)
            self._named = dict.fromkeys(self._now.entered)

    @property
    def adapters(self) -> tuple[str, ...]:
        """The names of the adapters, oldest first."""
        return tuple(self._named)

    @property
    def active(self) -> str | tuple[str, ...] | None:
        """The name of the adapters in the model, or a tuple of names if several are active.

        The order of the tuple is the order of a sum's weights.
        `None` without adapters, or without a name.
        """
        names = () if self._disabled is not None else self._active_names()
        return names if len(names) > 1 else next(iter(names), None)

    def _active_names(self) -> tuple[str, ...]:
        """In the order of a sum's weights."""
        names = [name for name, inactive in self._named.items() if inactive is None]
        order = [*(self._disabled or self._now).entered]
        return tuple(sorted(names, key=lambda name: order.index(name) if name in order else -1))

    def adapter(self, name: str) -> AdapterSet:
        """The adapters of that name with their current values, to save, scale or combine them.

        **Raises:** `SelectionError` if the name is unknown.
        """
        inactive = self._find(name)
        if inactive is not None:
            return inactive.adapters
        state = self._disabled or self._now
        return sets_now(state)[name] if is_sum(state) else extract_adapters(state.module)

    def add_adapter(self: N, name: str, adapters: AdapterSet | None = None) -> N:
        """Name the adapters of the model, or add a set of adapters under a name.

        **Arguments:**

        - `name`: a new name.
        - `adapters`: a set (`extract_adapters`, `combine`), which `activate` puts into the model.
            Without it, the adapters that `lora` made get the name, and are active.

        **Raises:** `SelectionError` if the name is taken, if the model has no adapters or they have
        a name, if `adapters` are sums, or do not fit the model (listing every misfit).
        """
        self._refuse_disabled("add_adapter")
        check_adapter_name(name)
        if name in self._named:
            raise SelectionError(
                f"There are adapters called {name!r} already. Choose another name, or call "
                f"net.delete_adapter({name!r}) first."
            )
        if adapters is not None:
            check_fit(self._now.plain().module, adapters, f"The adapters to be called {name!r}")
            if any(issubclass(a.wrapper, AdapterSum) for a in adapters.adapters.values()):
                raise SelectionError(
                    f"The adapters to be called {name!r} are a sum of several sets. Add each set "
                    "by its name: split_adapters(adapters) gives them, for net.activate(...)."
                )
        elif not holds_adapters(self.module):
            raise SelectionError(
                f"The model carries no adapters that could be called {name!r}. Call "
                "net.lora(...) first, or give an AdapterSet."
            )
        elif active := self._active_names():
            shown, first = " and ".join(map(repr, active)), next(iter(active))
            raise SelectionError(
                f"The model's adapters are called {shown} already. To add a copy, give it: "
                f"net.add_adapter({name!r}, net.adapter({first!r}))"
            )
        inactive = None if adapters is None else InactiveAdapters(adapters)
        self._named = {**self._named, name: inactive}
        return self

    def activate(
        self: N, *names: str, weights: Weights = None, train: Collection[str] | None = None
    ) -> N:
        """Exchange the model's adapters for the adapters of that name, or for a sum of several.

        The net keeps the former adapters under their names. One set keeps its values, and which of
        its arrays and of its layers' arrays train, even if `freeze` is called meanwhile. Adapters
        that become active for the first time train as after `lora`. A `lora` call adds to the
        active adapters.

        With several names, weights or `train`, the model gets the sum of the sets (`sum_adapters`):
        each layer changes by the sum of their updates. Only the sets in `train` train.

        **Arguments:**

        - `names`: of one set, or of several.
        - `weights`: by name, a number; 1 for other names. With `"train"`, one number for each set
            and layer trains. Without numbers, the weights are as in the last sum of these sets, or
            1. Give numbers to begin again.
        - `train`: the names of the sets whose adapters train, as they trained before. A set that
            does not train here keeps its values, and which of its arrays train.

        **Raises:** `SelectionError` if a name is unknown or there twice; as `deactivate`; and as
        `sum_adapters`.
        """
        self._refuse_mask("activate")
        inactive = [self._find(name) for name in names]
        if not names or len(set(names)) < len(names):
            raise SelectionError(f"activate takes one name or several, each once, but got {names}.")
        is_alone = len(names) == 1 and weights is None and train is None
        if is_alone and inactive == [None] and not is_sum(self._now):
            return self
        stored, plain = self._with_active_stored(), self._now.plain()
        chosen: Any = {name: stored[name] for name in names}
        if is_alone:
            entered = {name: inactive.without_arrays() for name, inactive in chosen.items()}
            state = dataclasses.replace(chosen[names[0]].put_into(plain), entered=entered)
        else:
            if is_traced(weights) and not is_traced(plain.module):
                raise SelectionError(
                    "net.activate(...) got weights of a JAX transformation (jit or grad), whose "
                    "values are gone when it ends. Inside, call sum_adapters(...)."
                )
            state = summed(plain, chosen, weights, () if train is None else train)
        return self._become(state, {**stored, **dict.fromkeys(names)})

    def deactivate(self: N) -> N:
        """Take the adapters out of the model. The net keeps them under their name.

        The layers that they wrapped stay as frozen as before (see `unfreeze`).

        **Raises:** `SelectionError` if the model carries adapters without a name (which would be
        lost), or if a mask is pending.
        """
        self._refuse_mask("deactivate")
        return self._become(self._now.plain(), self._with_active_stored())

    def delete_adapter(self: N, name: str) -> N:
        """Drop the adapters of that name. Active adapters leave the model.

        **Raises:** `SelectionError` if the name is unknown, or if a mask is pending.
        """
        self._refuse_mask("delete_adapter")
        if self._find(name) is None:
            self._refuse_sum("delete_adapter")
        state = self._now.plain() if self._find(name) is None else self._now
        return self._become(state, self._without([name]))

    def load_adapters(
        self: N,
        path: FilePath,
        *,
        strict: Strict = True,
        wrappers: Classes = (),
        registry: Registry | None = None,
    ) -> N:
        """Put the adapters of a file around their layers. See `jno.lora.load_adapters`.

        Afterwards the loaded adapters train, the layers they wrap do not, and everything else is
        as it was. The loaded adapters join the active adapters, and replace those without a name;
        to keep them apart, give `add_adapter` the set that `read_adapters` returns. A sum brings
        the names of its sets.

        **Arguments** and **Raises:** as `load_adapters`. The default `registry` is the net's. Also
        raises a `CheckpointError` if the net carries an adapter around a layer of the file, or in
        such a layer, and a `SelectionError` if a mask is pending, or if adapters of the file would
        replace adapters that have a name.
        """
        self._refuse_mask("load_adapters")
        self._refuse_sum("load_adapters")
        loaded, replaced = self._now.loaded(path, wrappers, registry or self._registry, strict)
        named: Named = {}
        if is_sum(loaded):
            loaded = with_names(loaded)
            named = dict.fromkeys(loaded.entered)
        if named and holds_adapters(self.module):
            raise SelectionError(
                "The file holds a sum of adapters, and the model carries adapters already. Call "
                "net.deactivate(), net.merge() or net.unwrap() first."
            )
        if taken := sorted(named.keys() & self._named.keys()):
            raise SelectionError(
                f"The file adds up adapters called {', '.join(map(repr, taken))}, and the net has "
                "adapters of these names. Call net.delete_adapter(name) first, or give "
                "net.add_adapter other names for the sets of split_adapters(read_adapters(path))."
            )
        if replaced and (active := self._active_names()):
            raise SelectionError(
                f"The adapters {active[0]!r} are active, and the file holds adapters for the same "
                f"layers:\n{bullets(map(show_path, replaced), 5)}\n"
                f"Call net.deactivate() first, which keeps {active[0]!r}. Or give the file a name: "
                "net.add_adapter(name, jno.lora.read_adapters(path)).activate(name)"
            )
        return self._become(loaded, {**self._named, **named})

    def _find(self, name: str) -> InactiveAdapters | None:
        check_adapter_name(name)
        if name in self._named:
            return self._named[name]
        near = nearest(str(name), self._named, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else "; no adapters have a name."
        raise SelectionError(f"No adapters are called {name!r}{hint}")

    def _with_active_stored(self) -> Named:
        """The named adapters, after the active adapters have left the model."""
        if is_sum(self._now):
            return {**self._named, **taken_out(self._now)}
        if names := self._active_names():
            return {**self._named, **{name: InactiveAdapters.of(self._now, name) for name in names}}
        if holds_adapters(self.module):
            raise SelectionError(
                "The model carries adapters without a name, which would be lost. Call "
                "net.add_adapter(name) to keep them, or net.unwrap() to drop them."
            )
        return self._named

    def _without(self, names: Collection[str]) -> Named:
        return {key: adapters for key, adapters in self._named.items() if key not in names}

    def _refuse_sum(self, verb: str) -> None:
        if is_sum(self._now):
            names = ", ".join(map(repr, self._active_names()))
            raise SelectionError(
                f"net.{verb}(...) cannot change a sum of adapters ({names}). Activate one of them, "
                "or call net.deactivate() or net.merge()."
            )
