"""`Net`: a mutable handle on an immutable model, and on which of its arrays train."""

import contextlib
import copy
import dataclasses
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.tree_util as jtu
from jaxtyping import PRNGKeyArray, PyTree

from .._checkpoint.classes import Classes
from .._checkpoint.file import FilePath
from .._checkpoint.reading import Strict
from .._checkpoint.writing import save
from .._contract.checks import NotAPytree, check_adapter_name, check_key, expect_model
from .._dispatch import carry_out, plan_call
from .._errors import SelectionError, warn
from .._paths import bullets, nearest, path_str, show_path
from .._peft_words import knows_words_of_peft
from .._planning.candidates import MaskLike, TargetLike, parse_mask
from .._planning.plan import Plan
from .._planning.planner import advised
from .._planning.specs import Spec, SpecLike, WrapperLike
from .._registry.open_functions import callable_model
from .._registry.registry import Registry, default_registry
from .._reports.report import LoraReport, report_on
from .._sets.members import NamedSet, NamedSets, Weights, members_of
from .._sets.set import AdapterSet, check_fit
from .._shared_arrays import resolve
from .._trainability import lora_trainable_filter
from .._tree import holds_adapters
from .state import COMPLEX, NetState, Origin, origins_of


class Net(NotAPytree):
    """A handle on a model: adapt it, choose which arrays train, split it for an optimiser.

    Every control acts at once and returns the handle, so that calls may be chained:

    ```python
    net = Net(model)
    net.freeze().lora(rank=8, alpha=16)     # adapters only
    trainable, frozen = net.partition()
    ...                                     # train
    net.update(trainable).merge()
    ```

    `mask(...)` narrows the next call of `lora`, `plan`, `freeze`, `unfreeze` or `train_adapters`,
    which uses it up. A control that raises changes nothing, so the mask stays set. A net can have
    several named sets of adapters, with one set, or the sum of several sets, in the model
    (`add_adapter`, `activate`, `deactivate`).

    PiSSA and MiLoRA change the weight of the layer that they wrap. The net also keeps the original
    layer, so that it can be restored bit for bit, which needs memory for a second copy of the
    weight.

    A net is not a pytree, so functions of JAX and Equinox raise an error. Pass them `net.module`,
    or the trees that `net.partition()` returns.

    **Arguments:**

    - `model`: any pytree that contains Equinox modules. It is not changed.
    - `key`: for the adapters' initial values, typed or raw; the default is `jax.random.key(0)`. A
        layer's values depend on the key and its path alone, so a layer that is merged and adapted
        again starts from the same values unless `lora` gets another key.
    - `registry`: where to look up adapters by name, instead of among the installed plugins.

    **Raises:** `SelectionError` if `key` is not a key, or if `model` is or contains a `Net`.
    """

    def __init__(
        self, model: PyTree, *, key: PRNGKeyArray | None = None, registry: Registry | None = None
    ):
        expect_model(model, "Net")
        self._state = NetState.of(model, default_registry(registry))
        # In a block without adapters, the state before the block.
        self._enabled: NetState | None = None
        self._key = jax.random.key(0) if key is None else key
        check_key(self._key)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The current model's output.

        A compiled function that calls the net (`jax.jit(jax.vmap(net))`, or with a `lambda`) keeps
        the weights of its first call, even after `update`. Instead, compile a function of the
        model, and pass it `net.module`.

        **Raises:** `SelectionError` if the model cannot be called, such as a dict.
        """
        return callable_model(resolve(self.module))(*args, **kwargs)

    def __repr__(self) -> str:
        report = self.summary()
        return f"Net({type(self.module).__name__}, {report._title()}, {report._caption()})"

    def __hash__(self) -> int:
        # JAX caches programs by the hash of the function. `jax.eval_shape(net, x)` would be
        # harmless, but uses the hash just as `jax.make_jaxpr` does, so it is refused too.
        raise SelectionError(
            f"A {type(self).__name__} changes, and has no hash: a program compiled for it, as by "
            "jax.jit(net), would keep the weights of its first call. Compile a function of the "
            "model: eqx.filter_jit(lambda model, x: model(x))(net.module, x)"
        )

    def __copy__(self) -> "Net":
        new = object.__new__(type(self))
        # The end of a `disabled` block would not restore a copy, so the copy is enabled.
        vars(new).update(vars(self), _state=self._whole, _enabled=None)
        return new

    def __deepcopy__(self, memo: dict[int, object]) -> "Net":
        # The state is immutable, and a registry has a lock, which cannot be copied.
        return copy.copy(self)

    @property
    def module(self) -> Any:
        """The current model, with its adapters."""
        return self._state.module

    @property
    def trainable(self) -> PyTree[bool]:
        """The leaves that train: Python bools in the structure of `module`."""
        return self._state.trainable

    def mask(self, mask: MaskLike) -> "Net":
        """Narrow the next control to the selected leaves. A second `mask` replaces the first.

        **Arguments:** `mask`: bools in the structure of `module` (or one bool per subtree), or a
        regex that is searched in the path of every leaf.

        **Raises:** `SelectionError` if the structure differs (naming where) or the regex is bad.
        """
        self._refuse("mask")
        parse_mask(self.module, mask)
        return self._become(self._state, mask=mask)

    @knows_words_of_peft
    def lora(
        self,
        rank: int = 4,
        alpha: float | None = None,
        *,
        target: TargetLike = None,
        wrapper: WrapperLike = None,
        specs: Iterable[SpecLike] | None = None,
        options: Mapping[str, Any] | None = None,
        statistics: Mapping[str, Mapping[str, Any]] | None = None,
        key: PRNGKeyArray | None = None,
    ) -> "Net":
        """Put adapters around the selected layers.

        Afterwards the new adapters train and the layers that they wrap do not. Other arrays train
        as before: all of them on a new `Net`, none after `freeze()`.

        **Arguments:**

        - `rank`, `alpha`: the adapters' rank and alpha; most methods scale their update by
            `alpha / rank`. By default `alpha` is the rank for most methods, so that the scale is 1.
        - `target`: a regex, searched in the slash-joined path of each layer; a list of names that
            paths end in (`["q_proj", "v_proj"]`); or `"all-linear"`: the linear layers in repeated
            blocks (so no output heads), except routers of experts.
        - `wrapper`: an adapter class, a registered name (`"DoRALinear"`) or variant (`"dora"`), a
            list of these in order of priority, `"auto"`, or `None`. `None` is LoRA on
            linear and convolution layers alone; `"lora"` is LoRA on all layers for which an
            installed plugin has it, such as spectral weights and transposed convolutions.
        - `specs`: a list of `jno.lora.Spec`s, or of dicts with the keys `target`, `rank`, `alpha`,
            `wrapper`, `options`. The call fills in whatever a spec leaves out. The first spec whose
            target matches and whose wrapper applies wins.
        - `options`: further keyword arguments for the adapters' constructors, such as
            `{"adapter_dtype": jnp.bfloat16}`.
        - `statistics`: what `collect_statistics` returned, for adapters that start from data (EVA).
        - `key`: overrides the key of the `Net`.

        **Raises:** `SelectionError` if nothing can be adapted (no match, or all matches carry an
        adapter already), a sum of sets is active, or an argument makes no sense; `PluginError` if a
        named plugin cannot be used; `WrapperError` if an adapter cannot be built. A mask that
        selects nothing warns.
        """
        self._refuse("lora", with_sum=True)
        state = self._state
        call = Spec(target=target, rank=rank, alpha=alpha, wrapper=wrapper, options=options)
        plan = plan_call(state.module, specs, call, state.mask, state.registry)
        if plan.carriers and not plan.wrapped:
            carriers = (f"{show_path(row.path)} ({row.explanation})" for row in plan.carriers)
            raise SelectionError(
                f"Every selected layer carries an adapter already:\n{bullets(carriers)}\n"
                "First call net.merge() to keep what they learned, or net.unwrap() to drop it."
            )
        key = self._key if key is None else key
        module = carry_out(state.module, plan, key=key, statistics=statistics)
        if module is not state.module:
            origins = origins_of(state.module, module)
            for row in plan.wrapped:
                origin = origins.get(row.path, Origin())
                origins[row.path] = dataclasses.replace(origin, asked_rank=row.rank)
            state = state.adapted(module, origins)
        return self._become(state, mask=None)

    @knows_words_of_peft
    def plan(
        self,
        rank: int = 4,
        alpha: float | None = None,
        *,
        target: TargetLike = None,
        wrapper: WrapperLike = None,
        specs: Iterable[SpecLike] | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> Plan:
        """The plan of `lora` with the same arguments and mask: what happens to each layer, and why.

        **Returns:** a `Plan`; `print` it for a table. Uses up a mask, as `lora` does.

        **Raises:** as `lora`, except for errors that only building an adapter raises. If a target
        selects nothing, the plan's `problem` is the error.
        """
        call = Spec(target=target, rank=rank, alpha=alpha, wrapper=wrapper, options=options)
        plan = plan_call(self.module, specs, call, self._state.mask, self._state.registry)
        self._become(self._state, mask=None)
        return advised(plan, self.module, self._state.registry)

    def freeze(self) -> "Net":
        """Freeze every leaf; with a mask, only the selected leaves.

        **Raises:** `SelectionError` in `with net.disabled()`. A mask that selects nothing warns.
        """
        self._refuse("freeze")
        return self._become(self._state.training(train=False))

    def unfreeze(self) -> "Net":
        """Train everything except wrapped layers; with a mask, also train the selected leaves.

        A mask may select leaves of a wrapped layer. Arrays that the method freezes (LoRA-FA's
        `lora_A`) never train.

        **Raises:** as `freeze`.
        """
        self._refuse("unfreeze")
        return self._become(self._state.training(train=True))

    def train_adapters(self) -> "Net":
        """Train the adapters in the model and nothing else, whatever trained before.

        With a mask, train only the selected arrays of the adapters. Of a sum, only the sets (and
        weights) train that `activate` got as `train`. Arrays outside the adapters stay frozen, also
        those that PEFT trained beside them (`modules_to_save`, biases): to train these as well, as
        PEFT's `is_trainable=True` does, follow with `net.mask("^classifier/").unfreeze()`.

        **Raises:** `SelectionError` if the model has no adapters that can train, or in `with
        net.disabled()`. A mask that selects nothing warns.
        """
        self._refuse("train_adapters")
        return self._become(self._state.training(train=True, adapters_alone=True))

    def partition(self) -> tuple[PyTree, PyTree]:
        """Split the model into `(trainable, frozen)`, which `eqx.combine` joins again.

        Warns if the model has adapters, and none of their arrays trains. Warns once for each net if
        a complex array trains.
        """
        state = self._state
        trainable, frozen = eqx.partition(state.module, state.trainable)
        adapters = lora_trainable_filter(state.module)
        if any(jax.tree.leaves(adapters)) and not jax.tree.leaves(eqx.filter(trainable, adapters)):
            warn("No array of the adapters trains. net.train_adapters() trains them alone.")
        leaves = jtu.tree_leaves_with_path(trainable)
        paths = [path_str(keys) for keys, leaf in leaves if leaf.dtype.kind == "c"]
        handout = state.handout.give()
        if paths and COMPLEX not in handout.silent:
            handout = handout.silence(COMPLEX)
            warn(
                f"These arrays train and are complex:\n{bullets(map(show_path, paths), 5)}\n"
                "JAX's gradient by a complex array is the conjugate of the direction of ascent. In "
                "a loop of your own, conjugate it before the optimiser gets it: "
                "grads = jax.tree.map(jnp.conj, grads)"
            )
        self._become(state, handout=handout)
        return trainable, frozen

    def update(self, trainable: PyTree) -> "Net":
        """Put trained arrays into the model.

        **Arguments:** `trainable`, the first tree that `partition` returned, with new values.

        **Raises:** `SelectionError` that lists the leaves that are missing, unexpected, or of
        another shape or dtype; or if other adapters were put into the model since `partition`; or
        if the arrays are traced, and the model is not.
        """
        self._refuse("update")
        return self._become(self._state.with_update(trainable))

    def merge(self) -> "Net":
        """Fold every adapter into its layer. Frozen layers stay frozen (see `unfreeze`).

        Warns if something trains, `partition` returned the adapters, and `update` was not called.

        **Raises:** `SelectionError` if a mask is pending; `WrapperError` as `merge_lora`.
        """
        self._refuse("merge", with_mask=True)
        merged = self._state.merged()
        if self._state.handout.misses_update and any(jax.tree.leaves(self.trainable)):
            _warn_of_missing_update("merged", "before net.merge()")
        return self._become(merged)

    def unwrap(self) -> "Net":
        """Drop the model's adapters and their names, and restore the layers.

        **Raises:** `SelectionError` if a mask is pending.
        """
        self._refuse("unwrap", with_mask=True)
        return self._become(self._state.plain())

    @contextlib.contextmanager
    def disabled(self) -> Iterator["Net"]:
        """A block in which the net acts as the model without adapters, and cannot be changed.

        Example: `with net.disabled(): reference = net(x)`. Layers that were not trained are bit for
        bit as before adapting. After the block, the net is as it was before the block.
        """
        before, enabled = self._state, self._enabled
        try:
            if enabled is None:
                self._enabled = before
                sets = NamedSets(before.sets.stored)
                self._state = dataclasses.replace(before.plain(), mask=None, sets=sets)
            yield self
        finally:
            at_end = self._state.handout  # with the warnings that the block already gave
            self._state, self._enabled = before, enabled
            self._become(before, handout=before.handout.silence(*at_end.silent))

    def summary(self, *, merge_error: bool = False) -> LoraReport:
        """The adapted layers, how many parameters train, and which matrices have no adapter.

        Prints as a table.

        **Arguments:** `merge_error`: whether to measure what merging would cost each layer.
        """
        now, sets = self._state, self._whole.sets
        asked = {path: x.asked_rank for path, x in now.origins.items() if x.asked_rank is not None}
        report = report_on(now.module, now.trainable, now.registry, asked, measure=merge_error)
        return dataclasses.replace(report, inactive=len(sets.stored) - len(sets.active))

    @property
    def adapters(self) -> tuple[str, ...]:
        """The names of the adapters, oldest first."""
        return tuple(self._state.sets.stored)

    @property
    def active(self) -> str | tuple[str, ...] | None:
        """The name of the adapters in the model, or a tuple of names if several are active.

        The order of the tuple is the order of a sum's weights. `None` if the model has no adapters,
        or if they have no name.
        """
        names = self._state.sets.active
        return names if len(names) > 1 else next(iter(names), None)

    def adapter(self, name: str) -> AdapterSet:
        """The adapters of that name with their current values, to save, scale or combine them.

        **Raises:** `SelectionError` if the name is unknown.
        """
        self._check_name(name)
        return self._whole.named_adapters(name)

    def add_adapter(self, name: str, adapters: AdapterSet | None = None) -> "Net":
        """Name the adapters of the model, or add a set of adapters under a name.

        **Arguments:**

        - `name`: a new name.
        - `adapters`: a set (`extract_adapters`, `combine`), which `activate` puts into the model.
            Without a set, the adapters that `lora` made get the name, and are active.

        **Raises:** `SelectionError` if the name is taken, if the model has no adapters or they have
        a name, if `adapters` are sums, or do not fit the model (listing every misfit).
        """
        self._refuse("add_adapter")
        check_adapter_name(name)
        state = self._state
        if name in state.sets.stored:
            raise SelectionError(f"There are adapters called {name!r} already. Choose a new name.")
        if adapters is not None:
            check_fit(state.plain().module, adapters, f"The adapters to be called {name!r}")
            if any(members_of(adapter.wrapper) for adapter in adapters.adapters.values()):
                raise SelectionError(
                    f"The adapters to be called {name!r} are a sum of several sets. Add each of "
                    "split_adapters(adapters) by a name, and activate all of them."
                )
            return self._become(state, sets=state.sets.having({name: NamedSet(adapters)}))
        active = state.sets.active
        if active or not holds_adapters(state.module):
            carried = " and ".join(map(repr, active)) or "no adapters"
            raise SelectionError(
                f"The model carries {carried}, and no adapters without a name to be called "
                f"{name!r}. Call net.lora(...) first, or give a set such as net.adapter(name)."
            )
        return self._become(state, sets=state.sets.activated([name]))

    def activate(
        self, *names: str, weights: Weights = None, train: Collection[str] | None = None
    ) -> "Net":
        """Exchange the model's adapters for the adapters of that name, or for a sum of several.

        The net keeps the former adapters under their names. A single set keeps its values, and
        which of its arrays, and of its layers' arrays, train, even if `freeze` is called in
        between. Adapters that become active for the first time train as after `lora`. A `lora` call
        adds to the active adapters.

        With several names, weights or `train`, the model gets the sum of the sets (`sum_adapters`):
        each layer changes by the sum of their updates. Only the sets in `train` train.

        **Arguments:**

        - `names`: the names of one set, or of several sets.
        - `weights`: numbers by name; 1 for names without a number. With `"train"`, one number for
            each set and layer trains. Without numbers, the weights are as in the last sum of these
            sets, or 1. Pass numbers to start again.
        - `train`: the names of the sets whose adapters train, as they trained before. A set that
            does not train here keeps its values, and which of its arrays train.

        **Raises:** `SelectionError` if a name is unknown or given twice; as `deactivate`; and as
        `sum_adapters`.
        """
        self._refuse("activate", with_mask=True)
        for name in names:
            self._check_name(name)
        if not names or len(set(names)) < len(names):
            raise SelectionError(f"activate takes one name or several, each once, but got {names}.")
        is_alone = len(names) == 1 and weights is None and train is None
        if is_alone and names == self._state.sets.active and not self._state.is_sum:
            return self
        state = self._state.deactivated()
        if is_alone:
            return self._become(state.with_set(names[0]))
        return self._become(state.with_sum(names, weights, train or ()))

    def deactivate(self) -> "Net":
        """Take the adapters out of the model. The net keeps them under their name.

        The layers that they wrapped stay as frozen as before (see `unfreeze`).

        **Raises:** `SelectionError` if the model carries adapters without a name (which would be
        lost), or if a mask is pending.
        """
        self._refuse("deactivate", with_mask=True)
        return self._become(self._state.deactivated())

    def delete_adapter(self, name: str) -> "Net":
        """Drop the adapters of that name. Active adapters leave the model.

        **Raises:** `SelectionError` if the name is unknown, if the adapters are in an active sum,
        or if a mask is pending.
        """
        is_active = name in self._state.sets.active
        self._refuse("delete_adapter", with_mask=True, with_sum=is_active)
        self._check_name(name)
        if is_active:
            return self._become(self._state.plain())
        return self._become(self._state, sets=self._state.sets.without([name]))

    def save_adapters(
        self,
        path: FilePath,
        *,
        registry: Registry | None = None,
        base_values: bool | PyTree = True,
        metadata: Mapping[str, Any] | None = None,
        proof: Any = None,
    ) -> "Net":
        """Write the model's adapters into one safetensors file. See `jno.lora.save_adapters`.

        `save_adapters(net.adapter(name), path)` writes adapters that are not active. The file also
        has hashes of layers that an adapter changed (PiSSA), from the copies in the net. Warns if
        arrays outside the adapters train too, because the file does not contain them; and once if
        `partition` returned these adapters and `update` was not called.

        **Arguments** and **Raises:** as `save_adapters`. The default `registry` is the net's.
        """
        state = self._whole
        registry, originals = registry or state.registry, state.original_layers()
        add_proof = registry.recorded(self, proof)
        save(state.module, path, registry, base_values, metadata, originals=originals)
        add_proof(path)
        if unsaved := state.trained_outside():
            warn(
                f"The adapters were saved. {len(unsaved)} other arrays train too, and are in no "
                f"file:\n{bullets(map(show_path, unsaved), 5)}\n"
                "`net.train_adapters()` trains adapters only; to save these arrays as well, save "
                "`net.partition()[0]` with `eqx.tree_serialise_leaves`."
            )
        if state.handout.misses_update:
            _warn_of_missing_update("saved", "and save again")
            handout = self._state.handout.silence(state.handout.adapters)
            self._become(self._state, handout=handout)
        return self

    def load_adapters(
        self,
        path: FilePath,
        *,
        strict: Strict = True,
        wrappers: Classes = (),
        registry: Registry | None = None,
        prove: bool = False,
    ) -> "Net":
        """Put the adapters of a file around their layers. See `jno.lora.load_adapters`.

        Afterwards the loaded adapters train, the layers they wrap do not, and everything else is as
        it was. The loaded adapters join the active adapters, and replace unnamed adapters; to keep
        them apart, pass the set that `read_adapters` returns to `add_adapter`. The sets of a loaded
        sum keep their names.

        **Arguments** and **Raises:** as `load_adapters`. The default `registry` is the net's. Also
        raises a `CheckpointError` if the net carries an adapter around a layer of the file, or in
        such a layer, and a `SelectionError` if a mask is pending, or if adapters of the file would
        replace adapters that have a name.
        """
        self._refuse("load_adapters", with_mask=True, with_sum=True)
        state = self._state
        loaded, replaced = state.loaded(path, wrappers, registry or self._state.registry, strict)
        brought = loaded.sets_of_sum()
        if brought and (holds_adapters(state.module) or brought.keys() & state.sets.stored.keys()):
            names = ", ".join(map(repr, brought))
            raise SelectionError(
                f"The file contains a sum of the adapters {names}, but the model carries adapters "
                "already, or the net has adapters of these names. Take these out first, or give "
                "net.add_adapter other names for the sets of split_adapters(read_adapters(path))."
            )
        if replaced and state.sets.active:
            raise SelectionError(
                f"The adapters {state.sets.active[0]!r} are active, and the file has adapters for "
                f"the same layers:\n{bullets(map(show_path, replaced), 5)}\n"
                "Call net.deactivate() first, which keeps them. Or give the file a name: "
                "net.add_adapter(name, jno.lora.read_adapters(path)).activate(name)"
            )
        if prove:
            (registry or state.registry).proofs().check(loaded.module, path)
        return self._become(loaded.with_names_of_sum())

    @property
    def _whole(self) -> NetState:
        """The state with the adapters, also in a block without adapters."""
        return self._enabled or self._state

    def _become(self, state: NetState, **changed: Any) -> "Net":
        self._state = dataclasses.replace(state, **changed)
        return self

    def _check_name(self, name: str) -> None:
        check_adapter_name(name)
        if name not in (stored := self._state.sets.stored):
            names = ", ".join(map(repr, nearest(name, stored))) or "none"
            raise SelectionError(f"No adapters are called {name!r}. The nearest names: {names}.")

    def _refuse(self, verb: str, *, with_mask: bool = False, with_sum: bool = False) -> None:
        """**Raises:** `SelectionError` in a block without adapters.

        - `with_mask`, `with_sum`: whether to raise also if a mask is pending, or for a sum.
        """
        state = self._state
        if self._enabled is not None:
            raise SelectionError(
                f"net.{verb}(...) was called in a `with net.disabled()` block. Its end would undo "
                "the change. Call it after the block."
            )
        if with_mask and state.mask is not None:
            raise SelectionError(
                f"A mask is pending, but {verb} takes no mask. Use it up first, by lora, plan, "
                "freeze or unfreeze."
            )
        if with_sum and state.is_sum:
            raise SelectionError(
                f"net.{verb}(...) cannot change a sum of adapters, {', '.join(state.sets.active)}. "
                "Activate one of them, or call net.deactivate() or net.merge()."
            )


def _warn_of_missing_update(done: str, then: str) -> None:
    warn(
        f"The adapters were {done} as they are in the net, and net.update(...) was not called "
        f"since net.partition(). If you trained them, call net.update(trainable) {then}."
    )
