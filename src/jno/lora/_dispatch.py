"""The dispatcher: it plans, builds adapters and puts them into the model."""

import contextlib
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, TypeAlias, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import PRNGKeyArray, PyTree

from ._compute.precision import is_finite
from ._contract.calling import is_traced, keys_for_stack, over_stack
from ._contract.checks import check_key, expect_model
from ._contract.constructing import construct, option_names
from ._contract.statistics import statistic_keys, zero_statistics
from ._contract.wrapper import LoRAWrapper
from ._errors import SelectionError, WrapperError, errors_as
from ._paths import path_str, show_path, stable_hash
from ._peft_words import explain_unknown, knows_words_of_jno, knows_words_of_peft
from ._planning.candidates import MaskLike, TargetLike, selector
from ._planning.messages import warn_of_omissions
from ._planning.plan import Plan, PlannedRow, PlanRow, planned_rows
from ._planning.planner import advised, make_plan
from ._planning.specs import Spec, SpecLike, WrapperLike, parse_specs
from ._registry.plugins import IN_PROCESS, first_party, how_to_block
from ._registry.registry import Registry, default_registry
from ._run import run
from ._sharding import place_like_base
from ._shared_arrays import names_shared_in, with_shared_arrays
from ._showing.progress import tracked

M = TypeVar("M")
# The statistics of each layer, by path and name.
Statistics: TypeAlias = Mapping[str, Mapping[str, Any]]
KeyData: TypeAlias = tuple[Any, Any]  # a key's data and its implementation, `None` for a raw key


@knows_words_of_jno
@knows_words_of_peft
def apply_lora(
    model: M,
    rank: int | None = None,
    alpha: float | None = None,
    *,
    key: PRNGKeyArray,
    target: TargetLike = None,
    specs: Iterable[SpecLike] | None = None,
    wrapper: WrapperLike = None,
    mask: MaskLike | None = None,
    options: Mapping[str, Any] | None = None,
    statistics: Statistics | None = None,
    registry: Registry | None = None,
) -> M:
    """`model` with adapters around the selected layers.

    **Arguments:**

    - `model`: any pytree that contains Equinox modules. It is not changed.
    - `rank`: the rank of the adapters. Optional if every spec has a rank or no adapter takes a
        rank.
    - `alpha`: the numerator of the scale (most methods scale their update by `alpha / rank`). The
        default is the adapter's `default_alpha`, which is the rank for most methods, so that the
        scale is 1.
    - `key`: a typed key or a raw `PRNGKey`. Each adapter's key is derived from `key` and from the
        layer's path, so that adapting one more layer never changes the initial values of other
        adapters.
    - `target`, `specs`, `options`, `statistics`: as for `Net.lora`.
    - `wrapper`: as for `Net.lora`. `None` selects linear and convolution layers; `"lora"` selects
        all layers for which an installed plugin has LoRA. (jNO's word is `wrappers`.)
    - `mask`: bools in the structure of `model`, or a regex on paths: only layers with a selected
        leaf are wrapped. (jNO's word is `param_mask`.)
    - `registry`: where to look up names, instead of among the installed plugins.

    **Returns:** the adapted model. Layers that already have an adapter stay as they are; if the
    call selects no other layer, it warns.

    **Raises:** `SelectionError` if a target or spec selects nothing or an argument makes no sense
    (a `Net` for the model, a rank of 0, an option that the adapter lacks), `PluginError` if a named
    plugin cannot be used, `WrapperError`, naming the path, if an adapter's constructor fails.
    """
    expect_model(model, "apply_lora")
    call = Spec(target=target, rank=rank, alpha=alpha, wrapper=wrapper, options=options)
    plan = plan_call(model, specs, call, mask, registry)
    return carry_out(model, plan, key=key, statistics=statistics)


@knows_words_of_jno
@knows_words_of_peft
def plan_lora(
    model: PyTree,
    rank: int | None = None,
    alpha: float | None = None,
    *,
    target: TargetLike = None,
    specs: Iterable[SpecLike] | None = None,
    wrapper: WrapperLike = None,
    mask: MaskLike | None = None,
    options: Mapping[str, Any] | None = None,
    registry: Registry | None = None,
) -> Plan:
    """The plan of `apply_lora` with the same arguments: every candidate, and why it is left out.

    **Returns:** a `Plan`; `print` it for a table. If it leaves out layers with matrices, their rows
    name the installed adapters that apply. If the call names its adapters, only loaded plugins are
    searched.

    **Raises:** as `apply_lora`, except for errors that only occur when an adapter is built. If a
    target selects nothing, the plan's `problem` is the error.
    """
    expect_model(model, "plan_lora")
    call = Spec(target=target, rank=rank, alpha=alpha, wrapper=wrapper, options=options)
    return advised(plan_call(model, specs, call, mask, registry), model, default_registry(registry))


def plan_call(
    model: PyTree,
    specs: Iterable[SpecLike] | None,
    call: Spec,
    mask: MaskLike | None,
    registry: Registry | None,
) -> Plan:
    """The plan of a call, which only queries the adapters that the call names."""
    registry = default_registry(registry)
    rules = parse_specs(registry, model, specs, call)
    plan = make_plan(registry, model, rules, selector(model, mask))
    for row in plan.wrapped:
        cls: Any = row.wrapper
        names = option_names(cls)
        if names is not None and (unknown := [name for name in row.options if name not in names]):
            where = f"the {row.layer} at {show_path(row.path)!r}"
            head = f"{cls.__name__}, the adapter for {where}, has no option"
            raise SelectionError(explain_unknown(head, unknown, names))
    return plan


def carry_out(
    model: M, plan: Plan, *, key: PRNGKeyArray, statistics: Statistics | None = None
) -> M:
    """Build the adapters of `plan` and put them into `model`."""
    check_key(key)
    if plan.problem is not None:
        advice = "`plan_lora(...)` (or `net.plan(...)`) explains every candidate."
        raise SelectionError(f"{plan.problem}\n{advice}")
    wrapped = {planned.keys: planned for planned in planned_rows(plan, "wrapped")}
    warn_of_omissions(plan)
    if not wrapped:
        return model
    nodes, treedef = jtu.tree_flatten_with_path(
        model, is_leaf=lambda keys, _: keys in wrapped, is_leaf_takes_path=True
    )
    layers = {keys: node for keys, node in nodes if keys in wrapped}
    rows = [wrapped[keys] for keys in layers]
    adapters = _build_all(rows, [*layers.values()], key, statistics or {})
    by_keys = dict(zip(layers, adapters, strict=True))
    model = jtu.tree_unflatten(treedef, [by_keys.get(keys, node) for keys, node in nodes])
    return with_shared_arrays(model, key=key) if names_shared_in(adapters) else model


def _build_all(
    rows: list[PlannedRow], layers: list[PyTree], key: PRNGKeyArray, statistics: Statistics
) -> list[LoRAWrapper]:
    show = not is_traced(key, layers[:1])
    # Calls of compiled programs are slow with typed keys, and there is one call for each layer.
    is_typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    impl = jax.random.key_impl(key) if is_typed else None
    data = jax.random.key_data(key) if is_typed else key
    with contextlib.closing(tracked(rows, "Adapting layers", show=show)) as shown:
        return [
            _build(planned, layer, (data, impl), _statistics_for(planned.row, layer, statistics))
            for planned, layer in zip(shown, layers, strict=True)
        ]


def _statistics_for(row: PlanRow, layer: PyTree, statistics: Statistics) -> dict[str, Any] | None:
    """The statistics that `row.wrapper` needs. **Raises:** `SelectionError` if some are missing."""
    cls: Any = row.wrapper
    keys = statistic_keys(cls)
    if not keys:
        return None
    zeros = over_stack(partial(zero_statistics, cls), cls.stack_ndim(layer))
    shapes = {keys[name]: x.shape for name, x in eqx.filter_eval_shape(zeros, layer).items()}
    collected = statistics.get(row.path, {})
    given = {name: jnp.shape(x) for name, x in collected.items() if name in shapes}
    if given != shapes:
        expected, came = (", ".join(f"{n} {x}" for n, x in d.items()) for d in (shapes, given))
        raise SelectionError(
            f"{cls.__name__} starts from data. It needs statistics of the {row.layer} at "
            f"{show_path(row.path)!r}: {expected}, but got {came or 'none'}. Collect them, and "
            "pass `statistics=`:\n    statistics = collect_statistics(model, batches, loss, "
            f"wrapper={cls.variant or cls.__name__!r})"
        )
    return {name: collected[key] for name, key in keys.items()}


def _build(planned: PlannedRow, layer: PyTree, key: KeyData, statistics: PyTree) -> LoRAWrapper:
    row, rule = planned.row, planned.rule
    cls: Any = row.wrapper
    alpha_is_default = rule is not None and rule.alpha is None
    settings = (row.rank, row.alpha, alpha_is_default, dict(row.options))
    number = np.uint32(stable_hash(row.path))
    hint = ""
    if row.distribution not in {None, IN_PROCESS, *first_party()}:
        hint = f"{cls.__name__} is from {row.distribution}.{how_to_block(row.distribution)}"
    what = f"build the {cls.__name__} around the {row.layer} at {show_path(row.path)!r}"
    with errors_as(what, hint=hint):
        try:
            adapter = run(_construct, cls, settings, layer, key, number, statistics, beside=layer)
        except FloatingPointError as err:  # a start that decomposes the weight (PiSSA)
            leaves = jtu.tree_leaves_with_path(layer)
            broken = [path_str(keys) for keys, leaf in leaves if not is_finite(leaf)]
            raise WrapperError(
                f"the adapter would be NaN, because its {', '.join(broken) or 'start'} holds NaN "
                "or infinity. Look at the checkpoint"
            ) from err
        return place_like_base(adapter, layer)


def _construct(
    cls: type[LoRAWrapper],
    settings: tuple[Any, ...],
    layer: PyTree,
    key: KeyData,
    number: Any,
    statistics: PyTree,
) -> LoRAWrapper:
    """The adapter around `layer`, with a key that is folded from `key` and `number`."""
    data, impl = key
    whole = data if impl is None else jax.random.wrap_key_data(data, impl=impl)
    rank, alpha, alpha_is_default, options = settings
    ndim = cls.stack_ndim(layer)

    def construct_slice(layer: PyTree, key: PRNGKeyArray, statistics: PyTree) -> LoRAWrapper:
        extra = {"options": options, "statistics": statistics}
        adapter = construct(cls, layer, rank, alpha, key=key, **extra)
        if alpha is None or not alpha_is_default or adapter.rank in (None, rank):
            return adapter
        # The layer clamps the rank, and the default alpha follows.
        return construct(cls, layer, rank, cls.default_alpha(adapter.rank), key=key, **extra)

    keys = keys_for_stack(jax.random.fold_in(whole, number), layer, ndim)
    return over_stack(construct_slice, ndim)(layer, keys, statistics)
