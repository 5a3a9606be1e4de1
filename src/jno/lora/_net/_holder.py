"""`Holder`: a model and its adapters, which it exchanges by name and by file."""

import contextlib
import copy
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

import jax.tree_util as jtu
from jaxtyping import PyTree

from .._checkpoint import FilePath, layers_to_hash, save
from .._contract import Handle, expect_model
from .._errors import SelectionError, warn
from .._paths import bullets, path_str, show_path
from .._planning import MaskLike
from .._registry import Registry, default_registry
from .._sets import extract_adapters
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
        self._warned_of_complex = False

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

    def _warn_of_complex(self, trainable: PyTree) -> None:
        leaves = jtu.tree_leaves_with_path(trainable) if not self._warned_of_complex else ()
        if paths := [path_str(keys) for keys, leaf in leaves if leaf.dtype.kind == "c"]:
            self._warned_of_complex = True
            warn(
                f"These arrays train and are complex:\n{bullets(map(show_path, paths), 5)}\n"
                "JAX's gradient by a complex array is the conjugate of the direction of ascent. "
                "Trainer and compare conjugate it. A loop of your own needs "
                "optax.chain(jno.lora.optim.conjugate(), optimiser)."
            )

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
