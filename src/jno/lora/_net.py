"""`Net`: a mutable handle on an immutable model, with the state of what trains."""

import operator
import re
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.tree_util as jtu
from jaxtyping import PRNGKeyArray, PyTree

from ._contract import is_wrapper
from ._dispatch import carry_out, plan_lora
from ._errors import JnoLoraWarning, SelectionError
from ._merge import merge_lora, unwrap_lora
from ._paths import bullets, path_str, show_path
from ._plan import Plan
from ._registry import Registry, default_registry
from ._report import LoraReport, count, report_on
from ._selection import MaskLike, SpecLike, WrapperLike, parse_mask
from ._trainability import (
    carry_to_adapted,
    carry_to_plain,
    may_train,
    partial_lora_trainable_filter,
)


class Net:
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

    **Arguments:**

    - `model`: any pytree that holds Equinox modules. It is never changed; `net.module` is the
        current one.
    - `key`: a key for the adapters' initial values, typed or raw. Without it, and without a `key`
        in a call, the seed is 0. A layer's values depend on the key and on its path alone, so a
        layer that is merged and adapted again needs another key to start from other values.
    - `registry`: where adapters are looked up by name, instead of among the installed plugins.
    """

    def __init__(
        self, model: PyTree, *, key: PRNGKeyArray | None = None, registry: Registry | None = None
    ):
        self._module = model
        self._registry = default_registry() if registry is None else registry
        self._key = jax.random.key(0) if key is None else key
        self._trainable = partial_lora_trainable_filter(model)
        self._mask: MaskLike | None = None

    @property
    def module(self) -> Any:
        """The current model, with its adapters."""
        return self._module

    @property
    def trainable(self) -> PyTree[bool]:
        """Which leaves train: Python bools in the structure of `module`."""
        return self._trainable

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The current model's output."""
        return self._module(*args, **kwargs)

    def __repr__(self) -> str:
        adapted = sum(map(is_wrapper, jax.tree.leaves(self._module, is_leaf=is_wrapper)))
        trains, total = count(self._module, self._trainable), count(self._module, self._counted())
        return (
            f"Net({type(self._module).__name__}, {adapted} adapted layers, "
            f"{trains:,} of {total:,} parameters train)"
        )

    def mask(self, mask: MaskLike) -> "Net":
        """Narrow the next control to the selected leaves. A second `mask` replaces the first.

        **Arguments:**

        - `mask`: bools in the structure of `module` (or one bool per subtree), or a regex that is
            searched in the slash-joined path of every leaf.

        **Raises:** `SelectionError` if the structure differs (naming where) or the regex is bad.
        """
        parse_mask(self._module, mask)
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
        plan = self._plan(rank, alpha, target, wrapper, specs, options)
        self._refuse_if_only_adapted(plan)
        adapted = carry_out(self._module, plan, key=self._key if key is None else key)
        self._trainable = carry_to_adapted(self._trainable, adapted)
        self._module = adapted
        self._mask = None
        return self

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
        plan = self._plan(rank, alpha, target, wrapper, specs, options)
        self._mask = None
        return plan

    def freeze(self) -> "Net":
        """Train nothing; with a mask, stop training what it selects."""
        return self._set_trainable(selected=False)

    def unfreeze(self) -> "Net":
        """Train everything but wrapped layers; with a mask, also train what it selects.

        A mask may select the arrays of a wrapped layer. It cannot select what an adapter keeps
        frozen by its definition (LoRA-FA's `lora_A`).
        """
        if self._mask is None:
            self._trainable = partial_lora_trainable_filter(self._module)
            return self
        return self._set_trainable(selected=True)

    def partition(self) -> tuple[PyTree, PyTree]:
        """The model as `(trainable, frozen)`, each with `None` where the other has a leaf.

        `eqx.combine(trainable, frozen)` is the model again.
        """
        return eqx.partition(self._module, self._trainable)

    def update(self, trainable: PyTree) -> "Net":
        """Take in trained arrays.

        **Arguments:**

        - `trainable`: the first tree that `partition` returned, with new values.

        **Raises:** `SelectionError` that names the first leaf that is missing, unexpected, or of
        another shape or dtype.
        """
        expected, frozen = self.partition()
        self._check_update(expected, trainable)
        self._module = eqx.combine(trainable, frozen)
        return self

    def merge(self) -> "Net":
        """Fold every adapter into its layer. What was frozen stays frozen (see `unfreeze`).

        **Raises:** `SelectionError` if a mask is pending, which `merge` cannot take into account;
        `WrapperError` if an adapter cannot be merged, naming its path.
        """
        self._refuse_mask("merge")
        return self._become_plain(merge_lora(self._module))

    def unwrap(self) -> "Net":
        """Drop every adapter, trained or not, and restore the layers as they were.

        **Raises:** `SelectionError` if a mask is pending, which `unwrap` cannot take into account.
        """
        self._refuse_mask("unwrap")
        return self._become_plain(unwrap_lora(self._module))

    def summary(self, *, merge_error: bool = False) -> LoraReport:
        """The adapted layers, and how many parameters train. Prints as a table.

        **Arguments:**

        - `merge_error`: whether to measure what merging would cost each layer, see `ReportRow`.
        """
        return report_on(self._module, self._trainable, self._registry, measure=merge_error)

    def _plan(
        self,
        rank: int,
        alpha: float,
        target: str | None,
        wrapper: WrapperLike,
        specs: Iterable[SpecLike] | None,
        options: Mapping[str, Any] | None,
    ) -> Plan:
        if rank == 0:
            raise SelectionError(
                "The rank of an adapter must be at least 1, but is 0. Leave the call out to keep "
                "the model as it is."
            )
        return plan_lora(
            self._module,
            rank,
            alpha,
            target=target,
            wrappers=wrapper,
            specs=specs,
            param_mask=self._mask,
            options=options,
            registry=self._registry,
        )

    def _set_trainable(self, *, selected: bool) -> "Net":
        mask = True if self._mask is None else self._mask
        chosen = parse_mask(self._module, mask)

        def state(before: bool, chosen: bool, possible: bool) -> bool:
            return (possible and selected) if chosen else before

        possible = may_train(self._module)
        if not any(jax.tree.leaves(jax.tree.map(operator.and_, chosen, possible))):
            warnings.warn(
                f"The mask {_brief(mask)} selects nothing that could train; nothing was changed.",
                JnoLoraWarning,
                stacklevel=3,
            )
        self._trainable = jax.tree.map(state, self._trainable, chosen, possible)
        self._mask = None
        return self

    def _become_plain(self, plain: PyTree) -> "Net":
        self._trainable = carry_to_plain(self._trainable, self._module, plain)
        self._module = plain
        return self

    def _refuse_mask(self, verb: str) -> None:
        if self._mask is not None:
            raise SelectionError(
                f"A mask is pending, but {verb} acts on every adapter. Use the mask up first (it "
                f"is for the next lora, plan, freeze or unfreeze), then call net.{verb}()."
            )

    def _counted(self) -> PyTree[bool]:
        return may_train(self._module)

    def _refuse_if_only_adapted(self, plan: Plan) -> None:
        if plan.wrapped:
            return
        adapted = [
            f"{show_path(row.path)} ({row.explanation})"
            for row in plan.having("already adapted")
            if row.spec is not None
        ]
        if not adapted:
            return
        raise SelectionError(
            "Every selected layer carries an adapter already, and a layer is never wrapped twice:\n"
            f"{bullets(adapted)}\n"
            "Call net.merge() to keep what they learned, or net.unwrap() to drop it, and then "
            "net.lora(...)."
        )

    def _check_update(self, expected: PyTree, given: PyTree) -> None:
        advice = "Pass the tree that `net.partition()` returned, with new values."
        want = {path_str(k): leaf for k, leaf in jtu.tree_leaves_with_path(expected)}
        got = {path_str(k): leaf for k, leaf in jtu.tree_leaves_with_path(given)}
        wrong = [f"{show_path(p)}: trained here, missing in the update" for p in want.keys() - got]
        wrong += [f"{show_path(p)}: not a trainable leaf of this net" for p in got.keys() - want]
        for path in want.keys() & got.keys():
            old, new = want[path], got[path]
            before = f"{old.dtype}{list(old.shape)}"
            after = f"{new.dtype}{list(new.shape)}" if eqx.is_array(new) else repr(new)
            if before != after:
                wrong.append(f"{show_path(path)}: expected {before}, got {after}")
        if wrong:
            raise SelectionError(
                f"The update does not fit this net:\n{bullets(sorted(wrong))}\n{advice}"
            )
        if jtu.tree_structure(expected) != jtu.tree_structure(given):
            raise SelectionError(f"The update has other classes or static fields. {advice}")


def _brief(mask: MaskLike) -> str:
    return repr(mask) if isinstance(mask, str | re.Pattern) else "given"
