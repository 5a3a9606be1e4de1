"""`Net`: a mutable handle on an immutable model, with the state of what trains."""

import contextlib
import copy
import dataclasses
import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import equinox as eqx
import jax
from jaxtyping import PRNGKeyArray, PyTree

from .._checkpoint import Classes, FilePath
from .._contract import Handle, check_key, expect_model, is_traced, is_wrapper
from .._dispatch import carry_out, plan_lora
from .._errors import JnoLoraWarning, SelectionError, warn
from .._planning import MaskLike, Plan, SpecLike, WrapperLike, parse_mask
from .._registry import Registry, default_registry
from .._reports import LoraReport, count, report_on
from .._sets import AdapterSet
from .._trainability import may_train
from ._checks import (
    check_update,
    refuse_disabled,
    refuse_if_only_adapted,
    refuse_mask,
    refuse_traced,
)
from ._files import left_out_of_a_file, with_adapters_of, write_adapters
from ._named import NamedAdapters
from ._state import NetState

_NEVER = object()


class Net(Handle):
    """A handle on a model: adapt it, choose what trains, split it for an optimiser.

    Every control acts at once and returns the handle, so calls work as statements and as chains:

    ```python
    net = Net(model)
    net.freeze().lora(rank=8, alpha=16)     # adapters only
    trainable, frozen = net.partition()
    ...                                     # train
    net.update(trainable).merge()
    ```

    `mask(...)` narrows the next control (`lora`, `freeze`, `unfreeze`, `plan`) and is then gone. A
    control that raises has changed nothing: the mask is still set.

    A net may hold several sets of adapters by name, of which one is in the model (`add_adapter`,
    `activate`, `deactivate`, `delete_adapter`).

    PiSSA and MiLoRA keep a layer in another form. So that it comes back bit for bit, the net holds
    on to the layer itself as well, which is a second copy of its weight if nothing else does.

    **Arguments:**

    - `model`: any pytree that holds Equinox modules. It is never changed; `net.module` is the
        current one.
    - `key`: a key for the adapters' initial values, typed or raw. Without it, and without a `key`
        in a call, the seed is 0. A layer's values depend on the key and on its path alone, so a
        layer that is merged and adapted again needs another key to start from other values.
    - `registry`: where adapters are looked up by name, instead of among the installed plugins.

    A net is no pytree: give `net.module`, or what `net.partition()` returns, to functions of JAX
    and Equinox, which refuse the net itself.

    **Raises:** `SelectionError` if `key` is no key, or `model` a `Net` or a tree that holds one.
    """

    def __init__(
        self, model: PyTree, *, key: PRNGKeyArray | None = None, registry: Registry | None = None
    ):
        expect_model(model, "Net")
        self._registry = default_registry(registry)
        self._key = jax.random.key(0) if key is None else key
        check_key(self._key)
        self._now = NetState.of(model)
        self._mask: MaskLike | None = None
        self._named = NamedAdapters()
        # With its adapters, while `disabled` shows it without.
        self._disabled: NetState | None = None
        # Of whose adapters `partition` gave out a tree last. No tree says whose values it holds,
        # and those of another set may have the same form.
        self._given: object = _NEVER

    @property
    def module(self) -> Any:
        """The current model, with its adapters."""
        return self._now.module

    @property
    def trainable(self) -> PyTree[bool]:
        """Which leaves train: Python bools in the structure of `module`."""
        return self._now.trainable

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The current model's output."""
        return self.module(*args, **kwargs)

    def __repr__(self) -> str:
        adapted = sum(map(is_wrapper, jax.tree.leaves(self.module, is_leaf=is_wrapper)))
        trains, total = (
            count(self.module, self.trainable),
            count(self.module, may_train(self.module)),
        )
        return (
            f"Net({type(self.module).__name__}, {adapted} adapted layers, "
            f"{trains:,} of {total:,} parameters train)"
        )

    def mask(self, mask: MaskLike) -> "Net":
        """Narrow the next control to the selected leaves. A second `mask` replaces the first.

        **Arguments:**

        - `mask`: bools in the structure of `module` (or one bool per subtree), or a regex that is
            searched in the slash-joined path of every leaf.

        **Raises:** `SelectionError` if the structure differs (naming where) or the regex is bad.
        """
        self._refuse_disabled("mask")
        parse_mask(self.module, mask)
        self._mask = mask
        return self

    def lora(
        self,
        rank: int = 4,
        alpha: float = 1.0,
        *,
        target: str | None = None,
        wrapper: WrapperLike = None,
        specs: Iterable[SpecLike] | None = None,
        options: Mapping[str, Any] | None = None,
        key: PRNGKeyArray | None = None,
    ) -> "Net":
        """Put adapters around the selected layers.

        Afterwards the new adapters train, the layers they wrap do not, and everything else is as
        it was: on a fresh `Net` it trains, after `freeze()` it does not.

        **Arguments:**

        - `rank`, `alpha`: of the adapters; most methods scale their update by `alpha / rank`.
        - `target`: a regex, searched in the slash-joined path of each layer.
        - `wrapper`: an adapter class, a registered name (`"DoRALinear"`) or variant (`"dora"`), a
            list of those in order of priority, `"auto"`, or `None` for LoRA on linear and
            convolution layers.
        - `specs`: dicts with the keys `target`, `rank`, `alpha`, `wrapper`, `options`; the first
            spec whose target matches and whose wrapper applies wins. What a spec lacks comes from
            the call.
        - `options`: further keyword arguments for the adapters' constructors, such as
            `{"adapter_dtype": jnp.bfloat16}`.
        - `key`: overrides the key of the `Net`.

        **Returns:** this `Net`.

        **Raises:** `SelectionError` if nothing can be adapted (no match, or all matches carry an
        adapter already) or an argument makes no sense; `PluginError` if a named plugin cannot be
        used; `WrapperError` if an adapter cannot be built. A mask that selects nothing warns.
        """
        self._refuse_disabled("lora")
        plan = self._plan(
            rank, alpha=alpha, target=target, wrappers=wrapper, specs=specs, options=options
        )
        refuse_if_only_adapted(plan)
        adapted = carry_out(self.module, plan, key=self._key if key is None else key)
        return self._become(self._now.adapted(adapted))

    def plan(
        self,
        rank: int = 4,
        alpha: float = 1.0,
        *,
        target: str | None = None,
        wrapper: WrapperLike = None,
        specs: Iterable[SpecLike] | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> Plan:
        """What `lora` would do with the same arguments (and mask), and why not elsewhere.

        **Returns:** a `Plan`; `print` it for a table. Uses up a mask, as `lora` does.

        **Raises:** as `lora`, but for what only happens when an adapter is built.
        """
        plan = self._plan(
            rank, alpha=alpha, target=target, wrappers=wrapper, specs=specs, options=options
        )
        self._mask = None
        return plan

    def freeze(self) -> "Net":
        """Train nothing; with a mask, stop training what it selects.

        **Raises:** `SelectionError` in a `with net.disabled()` block. A mask that selects nothing
        warns.
        """
        return self._train("freeze", train=False)

    def unfreeze(self) -> "Net":
        """Train everything but wrapped layers; with a mask, also train what it selects.

        A mask may select the arrays of a wrapped layer. It cannot select what an adapter keeps
        frozen by its definition (LoRA-FA's `lora_A`).

        **Raises:** as `freeze`.
        """
        return self._train("unfreeze", train=True)

    def partition(self) -> tuple[PyTree, PyTree]:
        """The model as `(trainable, frozen)`, each with `None` where the other has a leaf.

        `eqx.combine(trainable, frozen)` is the model again.
        """
        if self._disabled is None:
            self._given = self._now.whose
        return eqx.partition(self.module, self.trainable)

    def update(self, trainable: PyTree) -> "Net":
        """Take in trained arrays.

        **Arguments:**

        - `trainable`: the first tree that `partition` returned, with new values.

        **Raises:** `SelectionError` that lists the leaves that are missing, unexpected, or of
        another shape or dtype; or if other adapters were put into the model (by `activate`,
        `load_adapters`, ...) after the last call of `partition`; or if the arrays are traced, and
        those that `partition` returned were not.
        """
        self._refuse_disabled("update")
        expected, frozen = eqx.partition(self.module, self.trainable)
        outdated = self._given not in (_NEVER, self._now.whose)
        check_update(expected, trainable, outdated=outdated)
        if self._given is not _NEVER and is_traced(trainable) and not is_traced(expected):
            refuse_traced("update")
        self._now = dataclasses.replace(self._now, module=eqx.combine(trainable, frozen))
        return self

    def merge(self) -> "Net":
        """Fold every adapter into its layer. What was frozen stays frozen (see `unfreeze`).

        **Raises:** `SelectionError` if a mask is pending, which `merge` cannot take into account;
        `WrapperError` if an adapter cannot be merged, naming its path.
        """
        self._refuse_mask("merge")
        return self._become(self._now.merged(), self._named.without_active())

    def unwrap(self) -> "Net":
        """Drop every adapter that the model carries, trained or not, and restore the layers.

        If they have a name, that is dropped with them; `deactivate` keeps them.

        **Raises:** `SelectionError` if a mask is pending, which `unwrap` cannot take into account.
        """
        self._refuse_mask("unwrap")
        return self._become(self._now.plain(), self._named.without_active())

    @property
    def adapters(self) -> tuple[str, ...]:
        """The names of the adapters, in the order in which they were added."""
        return self._named.names

    @property
    def active(self) -> str | None:
        """The name of the adapters that the model carries; `None` if they have none, or it none."""
        return None if self._disabled else self._named.active

    def adapter(self, name: str) -> AdapterSet:
        """The adapters of that name with their current values, to save, scale or combine them.

        **Raises:** `SelectionError` if there is no such name.
        """
        return self._named.get(name, self._disabled or self._now)

    def add_adapter(self, name: str, adapters: AdapterSet | None = None) -> "Net":
        """Give a name to adapters: to those that the model carries, or to a set, which is kept.

        **Arguments:**

        - `name`: a new one.
        - `adapters`: a set (`extract_adapters`, `combine`). It becomes active by `activate` only.
            Without it, the adapters that `lora` made get the name, and are active.

        **Raises:** `SelectionError` if the name is taken, if the model's adapters have a name or
        there are none, if the set is none, or does not fit the model (listing every misfit).
        """
        self._refuse_disabled("add_adapter")
        self._named = self._named.add(name, adapters, self._now)
        return self

    def activate(self, name: str) -> "Net":
        """Put the adapters of that name in the place of those that the model carries.

        Those are kept under their name with their current values, and with what of them and of the
        layers in them trained. What was active before trains as it did then, whatever was frozen
        meanwhile; what is active for the first time trains as after `lora`. A `lora` call adds to
        the active adapters.

        **Raises:** `SelectionError` if there is no such name, if the model carries adapters without
        a name (which would be lost), or if a mask is pending.
        """
        self._refuse_mask("activate")
        return self._become(*self._named.activate(name, self._now))

    def deactivate(self) -> "Net":
        """Take the adapters out of the model, and keep them under their name.

        The layers they wrapped stay as frozen as they were in them (see `unfreeze`).

        **Raises:** `SelectionError` if the model carries adapters without a name (which would be
        lost), or if a mask is pending.
        """
        self._refuse_mask("deactivate")
        return self._become(*self._named.deactivate(self._now))

    def delete_adapter(self, name: str) -> "Net":
        """Drop the adapters of that name, out of the model too if they are active.

        **Raises:** `SelectionError` if there is no such name, or if a mask is pending.
        """
        self._refuse_mask("delete_adapter")
        return self._become(*self._named.delete(name, self._now))

    @contextlib.contextmanager
    def disabled(self) -> Iterator["Net"]:
        """A block in which the net is the model without adapters, and cannot be changed.

        ```python
        with net.disabled():
            reference = net(x)
        ```

        At its end, or when it raises, everything is as it was before. Layers are those that the
        adapters were put around, bit for bit, unless they were trained themselves.
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

    def save_adapters(self, path: FilePath, *, registry: Registry | None = None) -> "Net":
        """Write the model's adapters into one safetensors file. See `jno.lora.save_adapters`.

        Those that are kept under a name are not in it: `save_adapters(net.adapter(name), path)`
        writes them. Warns if arrays outside the adapters train too, for they are not in the file.

        **Raises:** `CheckpointError` if there are no adapters, or the file cannot be written.
        """
        state = self._disabled or self._now
        write_adapters(state, path, self._registry if registry is None else registry)
        message = left_out_of_a_file(state)
        if message:
            warn(message)
        return self

    def load_adapters(
        self,
        path: FilePath,
        *,
        strict: bool = True,
        wrappers: Classes = (),
        registry: Registry | None = None,
    ) -> "Net":
        """Put the adapters of a file around their layers. See `jno.lora.load_adapters`.

        Afterwards the loaded adapters train, the layers they wrap do not, and everything else is
        as it was. An adapter that a layer carries is replaced; others stay. If the net's adapters
        have a name, the loaded ones are among them; to keep them apart, give `add_adapter` what
        `read_adapters` returns.

        **Arguments:**

        - `strict`: whether all must fit; if not, those that do are loaded, with a warning.
        - `wrappers`: the classes of adapters that no plugin provides.

        **Raises:** `CheckpointError` if the file is damaged, a plugin is missing, something does
        not fit, or the net carries an adapter around a layer of the file's, or in it;
        `SelectionError` if a mask is pending, or two of `wrappers` have one name; `WrapperError` if
        one of them is no adapter class.
        """
        self._refuse_mask("load_adapters")
        registry = self._registry if registry is None else registry
        state, messages = with_adapters_of(
            self._now, path, strict=strict, wrappers=wrappers, registry=registry
        )
        for message in messages:
            warn(message)
        return self._become(state)

    def summary(self, *, merge_error: bool = False) -> LoraReport:
        """The adapted layers, and how many parameters train. Prints as a table.

        **Arguments:**

        - `merge_error`: whether to measure what merging would cost each layer, see `ReportRow`.
        """
        return report_on(self.module, self.trainable, self._registry, measure=merge_error)

    def _plan(self, rank: int, **asked: Any) -> Plan:
        if rank == 0:
            raise SelectionError(
                "The rank of an adapter must be at least 1, but is 0. Leave the call out to keep "
                "the model as it is."
            )
        return plan_lora(self.module, rank, param_mask=self._mask, registry=self._registry, **asked)

    def _train(self, verb: str, *, train: bool) -> "Net":
        self._refuse_disabled(verb)
        state, warning = self._now.training(self._mask, train=train)
        if warning is not None:
            warnings.warn(warning, JnoLoraWarning, stacklevel=3)
        return self._become(state)

    def _become(self, state: NetState, named: NamedAdapters | None = None) -> "Net":
        # Ctrl-C is handled where Python calls a function. Nothing is called between the first
        # assignment and the last, so it finds the net as it was or as it is to be.
        self._now = state
        if named is not None:
            self._named = named
        self._mask = None
        return self

    def _refuse_mask(self, verb: str) -> None:
        self._refuse_disabled(verb)
        if self._mask is not None:
            refuse_mask(verb)

    def _refuse_disabled(self, verb: str) -> None:
        if self._disabled is not None:
            refuse_disabled(verb)

    def __copy__(self) -> "Net":
        made = object.__new__(type(self))
        made.__dict__.update(self.__dict__)
        if made._disabled is not None:  # the block ends for this net, not for the copy
            made._now, made._disabled = made._disabled, None
        return made

    def __deepcopy__(self, memo: dict[int, Any]) -> "Net":
        # All that it holds is immutable, and JAX's own functions do not survive a deep copy.
        return copy.copy(self)
