"""`Holder`: a model and its adapters, which it exchanges by name and by file."""

import contextlib
import copy
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from jaxtyping import PyTree

from .._checkpoint import Classes, FilePath, Strict, layers_to_hash, save
from .._contract import Handle, check_adapter_name, expect_model
from .._errors import SelectionError, warn
from .._paths import bullets, nearest, show_path
from .._planning import MaskLike
from .._registry import Registry, default_registry
from .._sets import AdapterSet, check_fit, extract_adapters
from .._trainability import partial_lora_trainable_filter
from .._tree import holds_adapters
from ._state import UNKNOWN, InactiveAdapters, NetState

H = TypeVar("H", bound="Holder")

# Adapters by name, oldest first. The active adapters are in the model, and `None` here.
Named = Mapping[str, InactiveAdapters | None]


class Holder(Handle):
    """A model, which of its arrays train, a pending mask and the named adapters."""

    def __init__(self, model: PyTree, registry: Registry | None):
        expect_model(model, "Net")
        self._registry = default_registry(registry)
        identity = object() if holds_adapters(model) else None
        self._now = NetState(model, partial_lora_trainable_filter(model), identity=identity)
        self._mask: MaskLike | None = None
        self._named: Named = {}
        # The state with adapters, while `disabled` shows the model without adapters.
        self._disabled: NetState | None = None
        # `NetState.identity` of the tree that `partition` returned last, and of the adapters that
        # need no warning of a missing update: the update came, or the warning was given.
        self._partitioned: object = UNKNOWN
        self._updated: frozenset[object] = frozenset()

    def __hash__(self) -> int:
        # JAX caches programs by the hash of the function. `jax.eval_shape(net, x)`, which would be
        # harmless, asks for the hash just as `jax.make_jaxpr` does, so it is refused too.
        raise SelectionError(
            f"A {type(self).__name__} changes, and has no hash: a program compiled for it, as by "
            "jax.jit(net), would keep the weights of its first call. Compile a function of the "
            "model: eqx.filter_jit(lambda model, x: model(x))(net.module, x)"
        )

    def __reduce__(self) -> Any:
        raise SelectionError(
            f"A {type(self).__name__} cannot be pickled: it holds a registry of plugins, and "
            "functions of JAX in its model may not be pickled. Write the adapters by "
            "net.save_adapters(path), or the model by eqx.tree_serialise_leaves(path, net.module)."
        )

    def __copy__(self: H) -> H:
        net = object.__new__(type(self))
        net.__dict__.update(self.__dict__)
        if net._disabled is not None:  # the block ends for this net, not for the copy
            net._now, net._disabled = net._disabled, None
        return net

    def __deepcopy__(self: H, memo: dict[int, Any]) -> H:
        # The attributes are immutable, and JAX's functions do not survive a deep copy.
        return copy.copy(self)

    @property
    def module(self) -> Any:
        """The current model, with its adapters."""
        return self._now.module

    @property
    def trainable(self) -> PyTree[bool]:
        """The leaves that train: Python bools in the structure of `module`."""
        return self._now.trainable

    @property
    def adapters(self) -> tuple[str, ...]:
        """The names of the adapters, oldest first."""
        return tuple(self._named)

    @property
    def active(self) -> str | None:
        """The name of the adapters in the model. `None` without adapters, or without a name."""
        if self._disabled is not None:
            return None
        return next((name for name, inactive in self._named.items() if inactive is None), None)

    def adapter(self, name: str) -> AdapterSet:
        """The adapters of that name with their current values, to save, scale or combine them.

        **Raises:** `SelectionError` if the name is unknown.
        """
        inactive = self._find(name)
        if inactive is not None:
            return inactive.adapters
        return extract_adapters((self._disabled or self._now).module)

    def add_adapter(self: H, name: str, adapters: AdapterSet | None = None) -> H:
        """Name the adapters of the model, or add a set of adapters under a name.

        **Arguments:**

        - `name`: a new name.
        - `adapters`: a set (`extract_adapters`, `combine`), which `activate` puts into the model.
            Without it, the adapters that `lora` made get the name, and are active.

        **Raises:** `SelectionError` if the name is taken, if the model has no adapters or they have
        a name, or if `adapters` do not fit the model (listing every misfit).
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
        elif not holds_adapters(self.module):
            raise SelectionError(
                f"The model carries no adapters that could be called {name!r}. Call "
                "net.lora(...) first, or give an AdapterSet."
            )
        elif self.active is not None:
            raise SelectionError(
                f"The model's adapters are called {self.active!r} already. To add a copy, give "
                f"it: net.add_adapter({name!r}, net.adapter({self.active!r}))"
            )
        inactive = None if adapters is None else InactiveAdapters(adapters)
        self._named = {**self._named, name: inactive}
        return self

    def activate(self: H, name: str) -> H:
        """Exchange the model's adapters for the adapters of that name.

        The net keeps the former adapters under their name. Each set keeps its values, and which of
        its arrays and of its layers' arrays train, even if `freeze` is called meanwhile. Adapters
        that become active for the first time train as after `lora`. A `lora` call adds to the
        active adapters.

        **Raises:** `SelectionError` if the name is unknown, and as `deactivate`.
        """
        self._refuse_mask("activate")
        inactive = self._find(name)
        if inactive is None:
            return self
        named = {**self._with_active_stored(), name: None}
        return self._become(inactive.put_into(self._now.plain()), named)

    def deactivate(self: H) -> H:
        """Take the adapters out of the model. The net keeps them under their name.

        The layers that they wrapped stay as frozen as before (see `unfreeze`).

        **Raises:** `SelectionError` if the model carries adapters without a name (which would be
        lost), or if a mask is pending.
        """
        self._refuse_mask("deactivate")
        return self._become(self._now.plain(), self._with_active_stored())

    def delete_adapter(self: H, name: str) -> H:
        """Drop the adapters of that name. Active adapters leave the model.

        **Raises:** `SelectionError` if the name is unknown, or if a mask is pending.
        """
        self._refuse_mask("delete_adapter")
        state = self._now.plain() if self._find(name) is None else self._now
        return self._become(state, self._without(name))

    @contextlib.contextmanager
    def disabled(self: H) -> Iterator[H]:
        """A block in which the net is the model without adapters, and cannot be changed.

        Example: `with net.disabled(): reference = net(x)`. Layers that were not trained are bit for
        bit as before adapting. After the block, the net is as it was before the block.
        """
        if self._disabled is not None:
            yield self
            return
        state, mask, plain = self._now, self._mask, self._now.plain()
        try:
            self._disabled = state
            yield self._become(plain)
        finally:
            # Nothing is called here, see `_become`.
            self._now, self._disabled, self._mask = state, None, mask

    def save_adapters(
        self: H,
        path: FilePath,
        *,
        registry: Registry | None = None,
        base_values: bool | PyTree = True,
        metadata: Mapping[str, Any] | None = None,
    ) -> H:
        """Write the model's adapters into one safetensors file. See `jno.lora.save_adapters`.

        `save_adapters(net.adapter(name), path)` writes adapters that are not active. The file also
        has hashes of layers that an adapter changed (PiSSA), from the copies in the net. Warns if
        arrays outside the adapters train too, since the file does not hold them; and once if
        `partition` returned these adapters and `update` never got them back.

        **Arguments** and **Raises:** as `save_adapters`. The default `registry` is the net's.
        """
        state = self._disabled or self._now
        adapters, originals = extract_adapters(state.module), state.original_layers()
        layers = layers_to_hash(base_values, state.module, adapters, originals)
        save(adapters, path, registry or self._registry, layers, metadata)
        if unsaved := state.trained_outside():
            warn(
                f"The adapters were saved. {len(unsaved)} other arrays train too, and are in no "
                f"file:\n{bullets(map(show_path, unsaved), 5)}\n"
                "`net.freeze().lora(...)` trains adapters only; to save these arrays as well, save "
                "`net.partition()[0]` with `eqx.tree_serialise_leaves`."
            )
        self._warn_of_missing_update(state, "saved", "and save again")
        return self

    def _warn_of_missing_update(self, state: NetState, done: str, then: str) -> None:
        if self._partitioned is state.identity and state.identity not in self._updated:
            self._updated |= {state.identity}
            warn(
                f"The adapters were {done} as they are in the net, and net.update(...) was not "
                "called since net.partition(). If you trained what it returned, call "
                f"net.update(trainable) {then}."
            )

    def load_adapters(
        self: H,
        path: FilePath,
        *,
        strict: Strict = True,
        wrappers: Classes = (),
        registry: Registry | None = None,
    ) -> H:
        """Put the adapters of a file around their layers. See `jno.lora.load_adapters`.

        Afterwards the loaded adapters train, the layers they wrap do not, and everything else is
        as it was. The loaded adapters join the active adapters; to keep them apart, give
        `add_adapter` the set that `read_adapters` returns.

        **Arguments** and **Raises:** as `load_adapters`. The default `registry` is the net's. Also
        raises a `CheckpointError` if the net carries an adapter around a layer of the file, or in
        such a layer, and a `SelectionError` if a mask is pending.
        """
        self._refuse_mask("load_adapters")
        return self._become(self._now.loaded(path, wrappers, registry or self._registry, strict))

    def _become(self: H, state: NetState, named: Named | None = None) -> H:
        # Python handles Ctrl-C where it calls a function. These assignments call none, so an
        # interrupt finds either the old state or the new state.
        self._now = state
        if named is not None:
            self._named = named
        self._mask = None
        return self

    def _refuse_mask(self, verb: str) -> None:
        self._refuse_disabled(verb)
        if self._mask is not None:
            raise SelectionError(
                f"A mask is pending, but {verb} takes no mask. Use it up first (by lora, plan, "
                f"freeze or unfreeze), then call net.{verb}(...)."
            )

    def _refuse_disabled(self, verb: str) -> None:
        if self._disabled is not None:
            raise SelectionError(
                f"net.{verb}(...) was called in a `with net.disabled()` block. Its end would undo "
                "the change. Call it after the block."
            )

    def _find(self, name: str) -> InactiveAdapters | None:
        check_adapter_name(name)
        if name in self._named:
            return self._named[name]
        near = nearest(str(name), self._named, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else "; no adapters have a name."
        raise SelectionError(f"No adapters are called {name!r}{hint}")

    def _with_active_stored(self) -> Named:
        """The named adapters, after the active adapters have left the model."""
        if self.active is not None:
            return {**self._named, self.active: InactiveAdapters.of(self._now)}
        if holds_adapters(self.module):
            raise SelectionError(
                "The model carries adapters without a name, which would be lost. Call "
                "net.add_adapter(name) to keep them, or net.unwrap() to drop them."
            )
        return self._named

    def _without(self, name: str | None) -> Named:
        return {key: adapters for key, adapters in self._named.items() if key != name}
