"""The dispatcher: plans by one walk over the model, builds adapters and puts them in place."""

import contextlib
import warnings
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import jax
import jax.tree_util as jtu
import numpy as np
from jax.core import Tracer
from jaxtyping import PRNGKeyArray, PyTree

from ._contract import LoRAWrapper, check_contract
from ._errors import JnoLoraError, JnoLoraWarning, SelectionError, WrapperError
from ._handle import refuse_net
from ._paths import FEW, bullets, nearest, show_path, stable_hash
from ._plan import Plan, PlanRow
from ._programs import Calls
from ._registry import Registry, default_registry
from ._selection import Mask, MaskLike, Spec, SpecLike, WrapperLike, parse_mask, parse_specs
from ._sharding import calls_on_the_mesh, place_like_base
from ._showing import tracked
from ._stacking import keys_for_stack, over_stack
from ._walk import NORMALISED, Walk

M = TypeVar("M")

_WHY_REFUSED = (
    "Layers inside eqx.nn.WeightNorm and SpectralNorm are not adapted: those rewrite the very "
    "weight that an adapter would add to, so that the adapter would be rescaled or bypassed. To "
    "adapt norm and layer as one, the update inside the norm, ask for it: "
    'wrapper=["lora", "lora-in-norm"].'
)


def apply_lora(
    model: M,
    rank: int = 0,
    alpha: float = 1.0,
    *,
    key: PRNGKeyArray,
    target: str | None = None,
    specs: Iterable[SpecLike] | None = None,
    wrappers: WrapperLike = None,
    param_mask: MaskLike | None = None,
    options: Mapping[str, Any] | None = None,
    registry: Registry | None = None,
) -> M:
    """`model` with adapters around the selected layers.

    **Arguments:**

    - `model`: any pytree that holds Equinox modules. It is not changed.
    - `rank`: the rank of the adapters. With `0`, the default, and no `specs`, the model is
        returned unchanged.
    - `alpha`: the numerator of the scale (most methods scale their update by `alpha / rank`).
    - `key`: a typed key or a raw `PRNGKey`. Each adapter's own key is derived from it and from the
        layer's path, so that adapting one layer more never changes another's initial values.
    - `target`: a regex, searched in the slash-joined path of each layer.
    - `specs`: dicts with the keys `target`, `rank`, `alpha`, `wrapper`, `options`; what one lacks
        comes from the call. The first spec whose target matches and whose wrapper applies wins.
    - `wrappers`: an adapter class, a registered name or variant, a list of those in order of
        priority, `"auto"`, or `None` for `LoRALinear` and `LoRAConv`.
    - `param_mask`: bools in the structure of `model`, or a regex on paths: only layers with a
        selected leaf are wrapped.
    - `options`: further keyword arguments for the adapters' constructors, such as
        `{"adapter_dtype": jnp.bfloat16}`; a spec may have `options` of its own.
    - `registry`: where names are looked up, instead of among the installed plugins.

    **Returns:** the adapted model. Layers that carry an adapter already stay as they are; if
    nothing else is selected, that is a warning.

    **Raises:** `SelectionError` if a target or spec selects nothing or an argument makes no sense
    (such as a `Net` for the model), `PluginError` if a named plugin cannot be used, `WrapperError`
    if an adapter's constructor fails (naming the path).
    """
    refuse_net(model, "apply_lora")
    _check_rank(rank)
    if rank == 0 and specs is None:
        return model
    if specs is not None:
        specs = list(specs)
    plan = plan_lora(
        model,
        rank,
        alpha,
        target=target,
        specs=specs,
        wrappers=wrappers,
        param_mask=param_mask,
        options=options,
        registry=registry,
    )
    return carry_out(model, plan, key=key)


def plan_lora(
    model: PyTree,
    rank: int = 0,
    alpha: float = 1.0,
    *,
    target: str | None = None,
    specs: Iterable[SpecLike] | None = None,
    wrappers: WrapperLike = None,
    param_mask: MaskLike | None = None,
    options: Mapping[str, Any] | None = None,
    registry: Registry | None = None,
) -> Plan:
    """What `apply_lora` would do with the same arguments, and why not for every other candidate.

    **Returns:** a `Plan`; `print` it for a table.

    **Raises:** as `apply_lora`, but for what only happens when an adapter is built.
    """
    refuse_net(model, "plan_lora")
    _check_rank(rank)
    if rank == 0 and specs is None:
        return Plan(())
    registry = default_registry() if registry is None else registry
    rules = parse_specs(
        registry,
        rank=rank,
        alpha=alpha,
        target=target,
        wrapper=wrappers,
        specs=specs,
        options=options,
    )
    mask = Mask.of(None if param_mask is None else parse_mask(model, param_mask))
    walk = Walk(registry, rules, mask)
    rows = walk.over(model)
    _check_every_spec_matched(rules, walk, rows)
    return Plan(tuple(rows))


def carry_out(model: M, plan: Plan, *, key: PRNGKeyArray) -> M:
    """Build the adapters of `plan` and put them into `model`."""
    chosen = {row.keys: row for row in plan.wrapped}
    _warn_of_what_was_left_out(plan)
    if not chosen:
        return model
    leaves, treedef = jtu.tree_flatten_with_path(
        model, is_leaf=lambda path, _: path in chosen, is_leaf_takes_path=True
    )
    adapted = [leaf for _, leaf in leaves]
    places = [index for index, (path, _) in enumerate(leaves) if path in chosen]
    rows = [chosen[leaves[index][0]] for index in places]
    adapters = _construct(rows, [adapted[index] for index in places], key)
    for index, adapter in zip(places, adapters, strict=True):
        adapted[index] = adapter
    _warn_of_clamped_ranks(rows, adapters)
    return jtu.tree_unflatten(treedef, adapted)


def _construct(rows: list[PlanRow], layers: list[Any], key: PRNGKeyArray) -> list[LoRAWrapper]:
    """The adapter around each layer. Those of the same settings are built together."""
    alike: dict[Any, list[int]] = {}
    for index, (row, layer) in enumerate(zip(rows, layers, strict=True)):
        assert row.wrapper is not None
        try:
            ndim = row.wrapper.stack_ndim(layer)
        except Exception as err:
            raise _failure(row, err) from err
        settings = (row.wrapper, row.rank, row.alpha, ndim, id(row.options))
        alike.setdefault(settings, []).append(index)
    calls: list[Any] = [None] * len(rows)
    for (*settings, _), members in alike.items():
        shared = (*settings, dict(rows[members[0]].options), key)
        items = [(layers[i], np.asarray(stable_hash(rows[i].path), np.uint32)) for i in members]
        together = calls_on_the_mesh(_make, shared, items, place_like_base)
        for place, index in enumerate(members):
            calls[index] = (rows[index], together, place)
    is_traced = any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves((key, layers[:1])))
    with contextlib.closing(tracked(calls, "Adapting layers", show=not is_traced)) as steps:
        return [_checked(*call) for call in steps]


def _checked(row: PlanRow, calls: Calls, place: int) -> LoRAWrapper:
    cls: Any = row.wrapper
    try:
        wrapper = calls.result(place)
    except Exception as err:
        raise _failure(row, err) from err
    if not isinstance(wrapper, cls):
        check_contract(cls)
        raise WrapperError(f"{cls.__name__}(...) made a {type(wrapper).__name__} at {row.path!r}")
    return wrapper


def _failure(row: PlanRow, err: Exception) -> JnoLoraError:
    """What to raise if the adapter of `row` cannot be built."""
    cls: Any = row.wrapper
    what = f"{cls.__name__} could not be built around the {row.layer} at {show_path(row.path)!r}"
    if isinstance(err, JnoLoraError):
        return type(err)(f"{what}: {err}")
    return WrapperError(f"{what}: {type(err).__name__}: {err}")


def _make(
    cls: Any, rank: int, alpha: float, ndim: int, options: Any, key: Any, layer: Any, number: Any
) -> LoRAWrapper:
    """The adapter around `layer`, by a key that `number` tells apart from those of other layers."""

    def one(base: Any, key: Any) -> Any:
        return cls(base, rank, alpha, key=key, **options)

    own_key = jax.random.fold_in(key, number)
    return over_stack(one, ndim)(layer, keys_for_stack(own_key, layer, ndim))


def _warn_of_clamped_ranks(rows: list[PlanRow], adapters: list[LoRAWrapper]) -> None:
    clamped = [
        f"{show_path(row.path)}: {row.rank} -> {adapter.rank}"
        for row, adapter in zip(rows, adapters, strict=True)
        if row.rank is not None and adapter.rank < row.rank
    ]
    if clamped:
        warnings.warn(
            "The rank is larger than these layers allow, and was clamped:\n"
            + bullets(clamped, FEW),
            JnoLoraWarning,
            stacklevel=4,
        )


def _check_rank(rank: Any) -> None:
    if isinstance(rank, int | np.integer) and rank < 0:
        raise SelectionError(f"`rank` must not be negative, but is {rank}.")


def _check_every_spec_matched(specs: tuple[Spec, ...], walk: Walk, rows: list[PlanRow]) -> None:
    """**Raises:** `SelectionError` for a spec that matches no layer at all (mask or not)."""
    refused = [row for row in rows if row.status in NORMALISED.values()]
    accounted = walk.matched | {row.spec for row in rows if row.status not in NORMALISED.values()}
    for index, spec in enumerate(specs):
        if index in accounted:
            continue
        open_to = ("wrapped", "target does not match", "mask does not select")
        adaptable = [row.path for row in rows if row.status in open_to]
        lines = [f"{spec.describe()} selects no layer."]
        inside = [row for row in refused if row.spec == index]
        if inside:
            lines.append(f"{_WHY_REFUSED} It matches only:")
            lines.append(bullets((f"{show_path(r.path)}: {r.status}" for r in inside), FEW))
        taken = walk.taken_before(index)
        if taken:
            lines.append("Earlier specs, which win, have taken what it matches:")
            lines.append(bullets(taken, FEW))
        if spec.target is not None and not any(spec.matches(row.path) for row in rows):
            near = nearest(spec.target.pattern, [row.path for row in rows])
            if near:
                lines.append("The nearest paths are:\n" + bullets(show_path(p) for p in near))
        if adaptable:
            lines.append(
                "The layers that the wrappers of this call can adapt are:\n"
                + bullets(map(show_path, adaptable), FEW)
            )
        elif rows:
            lines.append(
                "The wrappers of this call can adapt none of the model's layers:\n"
                + bullets(
                    (f"{show_path(row.path)}: {row.layer}{_because(row)}" for row in rows), FEW
                )
            )
        else:
            lines.append(
                "The model holds no Equinox module with arrays. (To adapt a skeleton of shapes: "
                "eqx.filter_eval_shape(lambda model: apply_lora(model, ...), skeleton).)"
            )
        lines.append("`plan_lora(...)` (or `net.plan(...)`) explains every candidate.")
        raise SelectionError("\n".join(lines))


def _because(row: PlanRow) -> str:
    if row.status == "already adapted":
        return f" ({row.explanation})"
    return "" if row.reason is None else f" ({row.reason})"


def _warn_of_what_was_left_out(plan: Plan) -> None:
    def warn(message: str, rows: tuple[PlanRow, ...]) -> None:
        listed = bullets((show_path(row.path) for row in rows), FEW)
        warnings.warn(f"{message}\n{listed}", JnoLoraWarning, stacklevel=5)

    refused = plan.having("inside WeightNorm", "inside SpectralNorm")
    if refused:
        warn(f"{_WHY_REFUSED} These were not adapted:", refused)
    if plan.wrapped:
        return
    masked = plan.having("mask does not select")
    adapted = tuple(row for row in plan.having("already adapted") if row.spec is not None)
    if adapted:
        warn(
            "Every selected layer carries an adapter already, so nothing was adapted. Merge or "
            "unwrap first to adapt them anew:",
            adapted,
        )
    elif masked:
        warn("The mask selects none of these layers, so nothing was adapted:", masked)
