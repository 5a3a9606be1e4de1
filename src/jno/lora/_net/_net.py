"""`Net`: a mutable handle on an immutable model, which also knows which arrays train."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import equinox as eqx
import jax
from jaxtyping import PRNGKeyArray, PyTree

from .._contract import check_key
from .._dispatch import carry_out, plan_call, plan_lora
from .._errors import SelectionError
from .._moved import moved
from .._paths import bullets, show_path
from .._peft_words import knows_words_of_peft
from .._planning import MaskLike, Plan, Spec, SpecLike, TargetLike, WrapperLike, parse_mask
from .._registry import Registry
from .._reports import LoraReport, report_on
from .._shared_arrays import resolve
from .._tree import callable_model
from ._naming import Naming
from ._state import originals_of


class Net(Naming):
    """A handle on a model: adapt it, choose which arrays train, split it for an optimiser.

    Every control acts at once and returns the handle, so that calls may be chained:

    ```python
    net = Net(model)
    net.freeze().lora(rank=8, alpha=16)     # adapters only
    trainable, frozen = net.partition()
    ...                                     # train
    net.update(trainable).merge()
    ```

    `mask(...)` narrows the next control (`lora`, `freeze`, `unfreeze`, `plan`) and is then gone. A
    control that raises changes nothing: the mask is still set. A net may hold several sets of
    adapters by name, with one set, or the sum of several sets, in the model (`add_adapter`,
    `activate`, `deactivate`).

    PiSSA and MiLoRA change the weight of the layer that they hold. The net keeps the original
    layer too, to restore it bit for bit. This is a second copy of the weight in memory.

    A net is not a pytree: functions of JAX and Equinox refuse it. Give them `net.module`, or the
    trees that `net.partition()` returns.

    **Arguments:**

    - `model`: any pytree that holds Equinox modules. It is not changed.
    - `key`: for the adapters' initial values, typed or raw; the default is `jax.random.key(0)`. A
        layer's values depend on the key and its path alone, so a layer that is merged and adapted
        again starts from the same values unless `lora` gets another key.
    - `registry`: where adapters are looked up by name, instead of among the installed plugins.

    **Raises:** `SelectionError` if `key` is not a key, or if `model` is a `Net` or holds one.
    """

    def __init__(
        self, model: PyTree, *, key: PRNGKeyArray | None = None, registry: Registry | None = None
    ):
        super().__init__(model, registry)
        self._key = jax.random.key(0) if key is None else key
        check_key(self._key)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The current model's output.

        A compiled function that calls the net (`jax.jit(jax.vmap(net))`, or with a `lambda`) holds
        the weights of its first call, also after `update`. Compile a function of the model, and
        give it `net.module`.

        **Raises:** `SelectionError` if the model cannot be called, such as a dict.
        """
        return callable_model(resolve(self.module))(*args, **kwargs)

    def __repr__(self) -> str:
        report = self.summary()
        trains = f"{report.trainable:,} of {report.total:,} parameters train"
        return f"Net({type(self.module).__name__}, {len(report)} adapted layers, {trains})"

    def mask(self, mask: MaskLike) -> "Net":
        """Narrow the next control to the selected leaves. A second `mask` replaces the first.

        **Arguments:** `mask`: bools in the structure of `module` (or one bool per subtree), or a
        regex that is searched in the path of every leaf.

        **Raises:** `SelectionError` if the structure differs (naming where) or the regex is bad.
        """
        self._refuse_disabled("mask")
        parse_mask(self.module, mask)
        self._mask = mask
        return self

    @knows_words_of_peft
    def lora(
        self,
        rank: int = 4,
        alpha: float = 1.0,
        *,
        target: TargetLike = None,
        wrapper: WrapperLike = None,
        specs: Iterable[SpecLike] | None = None,
        options: Mapping[str, Any] | None = None,
        statistics: Mapping[str, Mapping[str, Any]] | None = None,
        calibrate: Sequence[Any] | None = None,
        key: PRNGKeyArray | None = None,
    ) -> "Net":
        """Put adapters around the selected layers.

        Afterwards the new adapters train and the layers that they wrap do not. Other arrays train
        as before: all of them on a new `Net`, none after `freeze()`.

        **Arguments:**

        - `rank`, `alpha`: of the adapters; most methods scale their update by `alpha / rank`.
        - `target`: a regex, searched in the slash-joined path of each layer; a list of names that
            paths end in (`["q_proj", "v_proj"]`); or `"all-linear"`: the linear layers in repeated
            blocks, which leaves out output heads, and without routers of experts.
        - `wrapper`: an adapter class, a registered name (`"DoRALinear"`) or variant (`"dora"`), a
            list of these in order of priority, `"auto"`, or `None` for LoRA on linear and
            convolution layers.
        - `specs`: a list of `jno.lora.Spec`s, or of dicts with the keys `target`, `rank`, `alpha`,
            `wrapper`, `options`. The call gives what a spec leaves out. The first spec whose target
            matches and whose wrapper applies wins.
        - `options`: further keyword arguments for the adapters' constructors, such as
            `{"adapter_dtype": jnp.bfloat16}`.
        - `statistics`: what `jno.lora.calibrate` returned, for adapters that start from data (EVA).
        - `calibrate`: `(batches, loss)`, to collect the statistics here.
        - `key`: overrides the key of the `Net`.

        **Raises:** `SelectionError` if nothing can be adapted (no match, or all matches carry an
        adapter already) or an argument makes no sense; `PluginError` if a named plugin cannot be
        used; `WrapperError` if an adapter cannot be built. A mask that selects nothing warns.
        """
        self._refuse_disabled("lora")
        self._refuse_sum("lora")
        state = self._now
        selection = self._selection(target, wrapper, specs)
        if calibrate is not None:
            collect, check = (moved("jno.lora", name) for name in ("calibrate", "check_calibrate"))
            batches, loss = check(calibrate, statistics)
            statistics = collect(state.module, batches, loss, **selection)
        call = Spec(target=target, rank=rank, alpha=alpha, wrapper=wrapper, options=options)
        plan = plan_call(state.module, specs, call, self._mask, self._registry)
        adapted = [row for row in plan.having("already adapted") if row.spec is not None]
        if adapted and not plan.wrapped:
            carriers = (f"{show_path(row.path)} ({row.explanation})" for row in adapted)
            raise SelectionError(
                "Every selected layer carries an adapter already, and a layer is never wrapped "
                f"twice:\n{bullets(carriers)}\n"
                "Call net.merge() to keep what they learned, or net.unwrap() to drop it, and then "
                "net.lora(...)."
            )
        key = self._key if key is None else key
        module = carry_out(state.module, plan, key=key, statistics=statistics)
        if module is not state.module:
            asked = {row.path: row.rank for row in plan.wrapped if row.rank is not None}
            originals = originals_of(state.module, module)
            state = state.adapted(module, originals, asked_ranks=asked)
        return self._become(state)

    @knows_words_of_peft
    def plan(
        self,
        rank: int = 4,
        alpha: float = 1.0,
        *,
        target: TargetLike = None,
        wrapper: WrapperLike = None,
        specs: Iterable[SpecLike] | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> Plan:
        """Plan `lora` with the same arguments and mask: each layer, with the reason.

        **Returns:** a `Plan`; `print` it for a table. Uses up a mask, as `lora` does.

        **Raises:** as `lora`, except for errors that only building an adapter raises. If a
        target selects nothing, the plan says so in `problem`.
        """
        selection = self._selection(target, wrapper, specs)
        plan = plan_lora(self.module, rank, alpha, options=options, **selection)
        self._mask = None
        return plan

    def freeze(self) -> "Net":
        """Train nothing; with a mask, stop training the selected leaves.

        **Raises:** `SelectionError` in `with net.disabled()`. A mask that selects nothing warns.
        """
        self._refuse_disabled("freeze")
        return self._become(self._now.training(self._mask, train=False))

    def unfreeze(self) -> "Net":
        """Train everything but wrapped layers; with a mask, also train the selected leaves.

        A mask may select leaves of a wrapped layer. Arrays that the method freezes (LoRA-FA's
        `lora_A`) never train.

        **Raises:** as `freeze`.
        """
        self._refuse_disabled("unfreeze")
        return self._become(self._now.training(self._mask, train=True))

    def partition(self) -> tuple[PyTree, PyTree]:
        """Split the model into `(trainable, frozen)`, which `eqx.combine` puts together again.

        Warns once for each net if a complex array trains: see `jno.lora.optim.conjugate`.
        """
        if self._disabled is None:
            self._partitioned = self._now.identity
        trainable, frozen = eqx.partition(self.module, self.trainable)
        self._warn_of_complex(trainable)
        return trainable, frozen

    def update(self, trainable: PyTree) -> "Net":
        """Take in trained arrays.

        **Arguments:** `trainable`, the first tree that `partition` returned, with new values.

        **Raises:** `SelectionError` that lists the leaves that are missing, unexpected, or of
        another shape or dtype; or if other adapters were put into the model since `partition`; or
        if the arrays are traced, and the model is not.
        """
        self._refuse_disabled("update")
        self._now = self._now.updated(trainable, self._partitioned)
        self._updated |= {self._now.identity}
        return self

    def merge(self) -> "Net":
        """Fold every adapter into its layer. Frozen layers stay frozen (see `unfreeze`).

        Warns if something trains, `partition` returned the adapters, and no `update` came.

        **Raises:** `SelectionError` if a mask is pending; `WrapperError` as `merge_lora`.
        """
        self._refuse_mask("merge")
        state, merged = self._now, self._now.merged()
        if state.identity is not None and any(jax.tree.leaves(state.trainable)):
            self._warn_of_missing_update(state, "merged", "before net.merge()")
        return self._become(merged, self._without(self._active_names()))

    def unwrap(self) -> "Net":
        """Drop every adapter in the model, and its name, and restore the layers.

        **Raises:** `SelectionError` if a mask is pending.
        """
        self._refuse_mask("unwrap")
        return self._become(self._now.plain(), self._without(self._active_names()))

    def summary(self, *, merge_error: bool = False) -> LoraReport:
        """The adapted layers, how many parameters train, and which matrices have no adapter.

        Prints as a table.

        **Arguments:** `merge_error`: whether to measure what merging would cost each layer.
        """
        asked = self._now.asked_ranks
        return report_on(self.module, self.trainable, self._registry, asked, measure=merge_error)

    def _selection(self, target: Any, wrapper: Any, specs: Any) -> dict[str, Any]:
        selection = {"target": target, "wrappers": wrapper, "specs": specs}
        return selection | {"param_mask": self._mask, "registry": self._registry}
