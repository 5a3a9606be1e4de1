"""The plan of a call: a row for each module that an adapter claims, or could claim."""

import dataclasses
import functools
import math
from collections.abc import Iterable, Iterator

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import PyTree

from .._contract.calling import safely_applies, why_not
from .._contract.coded import is_coded
from .._contract.constructing import takes
from .._contract.wrapper import LoRAWrapper, is_adapter, overrides
from .._errors import SelectionError
from .._left_out import count_plain, is_parameter, layers_left_out
from .._paths import KeyPath, listed, show_array, show_path
from .._registry.registry import Registry
from .._tree import fields_of, modules_in
from .candidates import Selector
from .claims import Claim, Questions
from .messages import notes_on, problems_of, tie
from .plan import Plan, PlannedRow, PlanRow, planned_rows
from .specs import DEFAULTS, AdapterClass, Rule

_CELLS = (eqx.nn.GRUCell, eqx.nn.LSTMCell)
_WITH_MATRICES = (eqx.nn.Linear, eqx.nn.Embedding, eqx.nn.Conv, eqx.nn.ConvTranspose, *_CELLS)


def make_plan(
    registry: Registry, model: PyTree, rules: tuple[Rule, ...], selects: Selector
) -> Plan:
    """The plan of a call: a row for each candidate, and the first error."""
    questions = Questions(registry, rules)
    planned = list(_planned_rows(questions, questions.claims(model, selects)))
    return Plan(
        tuple(x.row for x in planned),
        problem=next(problems_of(rules, planned), None),
        notes=tuple(notes_on(rules, planned)),
        by_default=any(DEFAULTS in rule.tiers for rule in rules) or not questions.named,
        _planned=tuple(planned),
    )


def _planned_rows(questions: Questions, claims: Iterable[Claim]) -> Iterator[PlannedRow]:
    adapted: KeyPath | None = None  # the last layer with an adapter, whose inside has no rows
    for claim in claims:
        keys = claim.candidate.keys
        if adapted is not None and keys[: len(adapted)] == adapted:
            continue
        row = _row(questions, claim)
        if row is not None:
            yield PlannedRow(row, keys, claim.rule, claim.is_selected)
            adapted = keys if row.status in ("wrapped", "already adapted") else None


def _row(questions: Questions, claim: Claim) -> PlanRow | None:
    """The row of a module, or `None` if no adapter is for the module itself."""
    candidate, module, rule = claim.candidate, claim.candidate.module, claim.rule
    row = functools.partial(PlanRow, candidate.path, type(candidate.layer).__name__)
    if is_adapter(module):
        cls, distribution = type(module), questions.registry.distribution(type(module))
        return row("already adapted", cls, distribution, rank=module.rank, alpha=module.alpha)
    if rule is None:
        if candidate.inside_norm is not None:
            return None
        if questions.misses_target(candidate):
            return row("target does not match")
        reason = _why_quantized(module) or questions.reason_against(candidate)
        # A layer that an adapter rejects may hold its arrays in nodes of another library.
        has_row = reason is not None or _owns_arrays(module)
        return row("no wrapper applies", reason=reason) if has_row else None
    if candidate.inside_norm is not None:
        return row(candidate.inside_norm if claim.is_selected else "mask does not select")
    cls = _chosen(questions, claim)
    if cls is None:
        return None
    if any(is_adapter(inner.candidate.module) for inner in claim.inside):
        return row("already adapted")
    if claim.is_selected and (reason := _why_not_stacked(cls, module)):
        return row("refused", cls, questions.registry.distribution(cls), reason=reason)
    arguments, alpha = takes(cls), rule.alpha
    if alpha is None:
        alpha = 1.0 if rule.rank is None else cls.default_alpha(rule.rank)
    return row(
        "wrapped" if claim.is_selected else "mask does not select",
        cls,
        questions.registry.distribution(cls),
        rule.rank if "rank" in arguments else None,
        alpha if "alpha" in arguments else None,
        options=rule.options,
        role=candidate.role if claim.is_selected else None,
    )


def _chosen(questions: Questions, claim: Claim) -> AdapterClass | None:
    """The class that adapts a candidate, or `None` if modules inside of it are adapted instead.

    They are adapted instead if an earlier rule or tier claims one of them.

    **Raises:** `SelectionError` if several classes of equal priority claim the candidate, or it and
    a module inside of it.
    """
    paths: dict[AdapterClass, str] = dict.fromkeys(claim.classes, claim.candidate.path)
    for rival in filter(Claim.can_act, claim.inside):
        if rival.place < claim.place:
            return None
        for cls in rival.classes if rival.place == claim.place else ():
            paths.setdefault(cls, rival.candidate.path)
    if len(paths) > 1:
        claims = (f"{questions.name(cls)}, for {show_path(path)!r}" for cls, path in paths.items())
        raise SelectionError(tie(claim.candidate, claims))
    return claim.classes[0]


def advised(plan: Plan, model: PyTree, registry: Registry) -> Plan:
    """`plan`, with the layers that it leaves out, and with advice in their rows.

    Queries the adapters of all installed plugins, and loads the plugins if a layer with matrices is
    left out. (If the call names classes, it loads nothing, and only queries the loaded plugins. The
    remaining plugins may have adapters, so there is no advice on how to declare.) This is why
    `apply_lora` and `net.lora` give no advice. A plan does not query when it prints either, because
    it would have to keep the model, and would change as plugins are loaded.
    """
    adapted = {x.keys for x in planned_rows(plan, "wrapped", "already adapted")}
    left_out = layers_left_out(model, count_plain(model), adapted)
    layers = dict(modules_in(model))
    asks_all = plan.by_default or not registry.discover

    def advice_for(row: PlanRow, layer: PyTree) -> str | None:
        values = fields_of(layer).items()
        matrices = [name for name, x in values if is_parameter(x) and len(x.shape) > 1]
        if row.status != "no wrapper applies" or not matrices:
            return None
        records = registry.records(strict=False) if asks_all else registry.loaded()
        wrappers = [wrapper for record in records for wrapper in record.wrappers]
        if applying := [wrapper for wrapper in wrappers if safely_applies(wrapper.cls, layer)]:
            # The adapters of `wrapper="auto"` first: the plugin itself prefers them.
            applying.sort(key=lambda wrapper: not wrapper.cls.auto)
            names = [wrapper.cls.__name__ for wrapper in applying]
            origins = ", ".join(dict.fromkeys(wrapper.distribution for wrapper in applying))
            return f"none of this call; {listed(names, 4)} ({origins})"
        if row.reason is not None or not asks_all:
            return None
        reasons = filter(None, (why_not(wrapper.cls, layer) for wrapper in wrappers))
        declare = f"declare {', '.join(matrices)} (docs/operators.md)"
        return f"no installed adapter applies; {next(reasons, declare)}"

    advice = [advice_for(x.row, layers[x.keys]) for x in plan._planned]
    rows = map(lambda row, text: dataclasses.replace(row, advice=text), plan.rows, advice)
    return dataclasses.replace(plan, rows=tuple(rows), left_out=left_out)


def _owns_arrays(module: eqx.Module) -> bool:
    """Whether an array is a direct field of `module`, or in a dict that is a field."""
    fields = fields_of(module).values()
    values = (x for field in fields for x in (field.values() if type(field) is dict else (field,)))
    return any(eqx.is_inexact_array(x) or is_coded(x) or _is_integer_matrix(x) for x in values)


def _why_quantized(module: eqx.Module) -> str | None:
    """Why a layer with integer weights, such as a quantised layer, is left out."""
    for name, value in fields_of(module).items():
        if _is_integer_matrix(value):
            return f"its {name} is {show_array(value)}, and adapters need floating weights"
    return None


def _why_not_stacked(cls: type[LoRAWrapper], layer: PyTree) -> str | None:
    """Why a class cannot adapt a layer that it claims: a stack, and the class knows no stacks."""
    if overrides(cls, LoRAWrapper, "stack_ndim"):
        return None
    for name, value in fields_of(layer).items():
        if getattr(value, "ndim", 0) > _own_ndim(layer, name):
            what = f"its {name} is {show_array(value)}, a stack of layers"
            return f"{what}, and {cls.__name__} does not define `stack_ndim`"
    return None


def _own_ndim(layer: PyTree, name: str) -> float:
    """How many axes an array of one layer has, if its class or annotation says; else infinity."""
    axes = getattr(type(layer).__dataclass_fields__[name].type, "dim_str", "...")
    if "*" not in axes and "." not in axes:
        return len(axes.split())
    if isinstance(layer, _WITH_MATRICES) and name.startswith("weight"):
        return 2 + getattr(layer, "num_spatial_dims", 0)
    return len(layer.shape) if isinstance(layer, eqx.nn.LayerNorm | eqx.nn.RMSNorm) else math.inf


def _is_integer_matrix(value: PyTree) -> bool:
    return eqx.is_array(value) and value.ndim > 1 and jnp.issubdtype(value.dtype, jnp.integer)
