"""`Holder`: the state behind a `Net`, and its adapters: by name, and in files."""

import contextlib
import copy
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from jaxtyping import PyTree

from .._checkpoint import Classes, FilePath, Strict, layers_to_hash, load, save, with_loaded
from .._contract import Handle, expect_model
from .._errors import SelectionError, warn
from .._paths import bullets, nearest, show_path
from .._planning import MaskLike
from .._registry import Registry, default_registry
from .._sets import AdapterSet, check_fit, extract_adapters
from .._trainability import partial_lora_trainable_filter
from .._tree import holds_adapters, replace_layers
from ._state import UNKNOWN, Kept, NetState, originals_of

H = TypeVar("H", bound="Holder")


class Holder(Handle):
    """Holds a model, which of its arrays train, a pending mask and the named adapters."""

    def __init__(self, model: PyTree, registry: Registry | None):
        expect_model(model, "Net")
        self._registry = default_registry(registry)
        whose = object() if holds_adapters(model) else None
        self._now = NetState(model, partial_lora_trainable_filter(model), whose=whose)
        self._mask: MaskLike | None = None
        # All adapters with a name, oldest first. Those in the model are `None` here.
        self._named: Mapping[str, Kept | None] = {}
        # The state with adapters, while `disabled` shows the model without them.
        self._disabled: NetState | None = None
        # The adapters (`NetState.whose`) of the tree that `partition` returned last, and those that
        # need no warning of a lost update, since one came back or the warning was given.
        self._given: object = UNKNOWN
        self._settled: frozenset[object] = frozenset()

    def __hash__(self) -> int:
        # `jax.jit`, `jax.checkpoint` and `lax.cond` keep what they compile by the function's hash.
        # So does `jax.make_jaxpr`, which asks for it as the harmless `jax.eval_shape(net, x)` does:
        # both would be allowed, or none.
        raise SelectionError(
            f"A {type(self).__name__} changes, and has no hash: what is compiled for it, as by "
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
        made = object.__new__(type(self))
        made.__dict__.update(self.__dict__)
        if made._disabled is not None:  # the block ends for this net, not for the copy
            made._now, made._disabled = made._disabled, None
        return made

    def __deepcopy__(self: H, memo: dict[int, Any]) -> H:
        # All that it holds is immutable, and JAX's own functions do not survive a deep copy.
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
        """The names of the adapters, in the order in which they were added."""
        return tuple(self._named)

    @property
    def active(self) -> str | None:
        """The name of the adapters in the model. `None` without adapters, or without a name."""
        if self._disabled is not None:
            return None
        return next((name for name, kept in self._named.items() if kept is None), None)

    def adapter(self, name: str) -> AdapterSet:
        """The adapters of that name with their current values, to save, scale or combine them.

        **Raises:** `SelectionError` if the name is unknown.
        """
        kept = self._find(name)
        if kept is not None:
            return kept.adapters
        return extract_adapters((self._disabled or self._now).module)

    def add_adapter(self: H, name: str, adapters: AdapterSet | None = None) -> H:
        """Name the adapters of the model, or keep a set of adapters under a name.

        **Arguments:**

        - `name`: a new one.
        - `adapters`: a set (`extract_adapters`, `combine`) to keep, until `activate` puts it into
            the model. Without it, the adapters that `lora` made get the name, and are active.

        **Raises:** `SelectionError` if the name is taken, if the model has no adapters or they have
        a name, or if `adapters` do not fit the model (listing every misfit).
        """
        self._refuse_disabled("add_adapter")
        if not isinstance(name, str):
            raise SelectionError(f"The name of adapters must be a string, but is {name!r}.")
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
        self._named = {**self._named, name: None if adapters is None else Kept(adapters)}
        return self

    def activate(self: H, name: str) -> H:
        """Put the adapters of that name in the place of those that the model carries.

        The latter are kept under their name. Each set keeps its values, and which of its arrays and
        of its layers' arrays train, even if `freeze` is called meanwhile. Adapters that become
        active for the first time train as after `lora`. A `lora` call adds to the active adapters.

        **Raises:** `SelectionError` if the name is unknown, and as `deactivate`.
        """
        self._refuse_mask("activate")
        kept = self._find(name)
        if kept is None:
            return self
        return self._become(kept.put_into(self._now.plain()), {**self._put_away(), name: None})

    def deactivate(self: H) -> H:
        """Take the adapters out of the model, and keep them under their name.

        The layers they wrapped stay as frozen as they were in them (see `unfreeze`).

        **Raises:** `SelectionError` if the model carries adapters without a name (which would be
        lost), or if a mask is pending.
        """
        self._refuse_mask("deactivate")
        return self._become(self._now.plain(), self._put_away())

    def delete_adapter(self: H, name: str) -> H:
        """Drop the adapters of that name, out of the model too if they are active.

        **Raises:** `SelectionError` if the name is unknown, or if a mask is pending.
        """
        self._refuse_mask("delete_adapter")
        state = self._now.plain() if self._find(name) is None else self._now
        return self._become(state, self._without(name))

    @contextlib.contextmanager
    def disabled(self: H) -> Iterator[H]:
        """A block in which the net is the model without adapters, and cannot be changed.

        Example: `with net.disabled(): reference = net(x)`. In the block, the layers are bit for bit
        those that were adapted, unless they were trained. Afterwards, all is as it was before.
        """
        if self._disabled is not None:
            yield self
            return
        state, mask = self._now, self._mask
        plain = state.plain()
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
    ) -> H:
        """Write the model's adapters into one safetensors file. See `jno.lora.save_adapters`.

        Adapters that are kept under a name are written by `save_adapters(net.adapter(name), path)`.
        The file also has hashes of layers that an adapter changed, which the net keeps (PiSSA).
        Warns if arrays outside the adapters train too, since the file does not hold them; and once
        if `partition` gave these adapters away and no `update` ever brought them back.

        **Arguments** and **Raises:** as there. The default `registry` is the net's.
        """
        state = self._disabled or self._now
        adapters, originals = extract_adapters(state.module), state.original_layers()
        layers = layers_to_hash(base_values, state.module, adapters, originals)
        save(adapters, path, registry or self._registry, layers)
        left_out = state.trained_outside()
        if left_out:
            warn(
                f"The adapters were saved. {len(left_out)} other arrays train too, and are in no "
                f"file:\n{bullets(map(show_path, left_out), 5)}\n"
                "`net.freeze().lora(...)` trains adapters only; to keep the others as well, save "
                "`net.partition()[0]` with `eqx.tree_serialise_leaves`."
            )
        self._warn_of_missing_update(state, "saved", "and save again")
        return self

    def _warn_of_missing_update(self, state: NetState, done: str, then: str) -> None:
        """Warn once if `partition` gave the adapters of `state` away, and none came back."""
        if self._given is state.whose and state.whose not in self._settled:
            self._settled |= {state.whose}
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
        as it was. If the net's adapters have a name, the loaded ones join them; to keep them apart,
        give `add_adapter` the set that `read_adapters` returns.

        **Arguments** and **Raises:** as there. The default `registry` is the net's. Also raises a
        `CheckpointError` if the net carries an adapter around a layer of the file's, or in it, and
        a `SelectionError` if a mask is pending.
        """
        self._refuse_mask("load_adapters")
        state, registry = self._now, registry or self._registry
        # Built around the plain layers: an adapter in the way may keep its layer changed (PiSSA).
        plain, known = state.plain().module, state.original_layers()
        loaded = load(
            state.module, path, wrappers, registry, strict=strict, plain=plain, originals=known
        )
        if loaded:
            originals = originals_of(plain, replace_layers(plain, loaded))
            state = state.adapted(with_loaded(state.module, loaded), originals, loaded)
        return self._become(state)

    def _become(self: H, state: NetState, named: Mapping[str, Kept | None] | None = None) -> H:
        # Python handles Ctrl-C where it calls a function. Nothing is called between the first
        # assignment and the last, so the net is then either as it was or as it is to be.
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

    def _find(self, name: str) -> Kept | None:
        if name in self._named:
            return self._named[name]
        near = nearest(str(name), self._named, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else "; no adapters have a name."
        raise SelectionError(f"No adapters are called {name!r}{hint}")

    def _put_away(self) -> dict[str, Kept | None]:
        """The named adapters once those in the model are kept out of it."""
        if self.active is not None:
            return {**self._named, self.active: Kept.of(self._now)}
        if holds_adapters(self.module):
            raise SelectionError(
                "The model carries adapters without a name, which would be lost. Call "
                "net.add_adapter(name) to keep them, or net.unwrap() to drop them."
            )
        return {**self._named}

    def _without(self, name: str | None) -> dict[str, Kept | None]:
        return {other: kept for other, kept in self._named.items() if other != name}
