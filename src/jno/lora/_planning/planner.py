"""The plan of a call: the modules of a model, the claims of adapters on them, a row for each."""

import dataclasses
import functools
import math
from collections.abc import Sequence

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import PyTree

from .._contract.coded import is_coded
from .._contract.constructing import takes
from .._contract.wrapper import LoRAWrapper, is_adapter, overrides
from .._errors import SelectionError, WrapperError, warn
from .._paths import FEW, bullets, show_array, show_path, show_place
from .._registry.plugins import how_to_block
from .._registry.registry import Registry
from .._tree import (
    count_plain,
    default_adapters,
    fields_of,
    is_parameter,
    layers_left_out,
    modules_in,
    safely_applies,
    why_not,
)
from .candidates import Candidate, Selector, candidates_of
from .plan import Plan, PlanRow, notes_on, problem_of
from .specs import AdapterClass, Rule, Tier

_NAMED = 4  # how many adapters the advice in a row names

_CELLS = (eqx.nn.GRUCell, eqx.nn.LSTMCell)
_WITH_MATRICES = (eqx.nn.Linear, eqx.nn.Embedding, eqx.nn.Conv, eqx.nn.ConvTranspose, *_CELLS)


def make_plan(
    registry: Registry, model: PyTree, rules: tuple[Rule, ...], selects: Selector
) -> Plan:
    """The plan of a call: a row for each candidate, and the first error."""
    questions = Questions(registry, rules)
    claims: list[Claim] = []
    for candidate in candidates_of(model):
        claims.append(questions.claim(candidate, selects(candidate.keys)))
    rows: list[PlanRow] = []
    for number, claim in enumerate(claims):
        has_adapter = bool(rows) and rows[-1].status in ("wrapped", "already adapted")
        if has_adapter and claim.candidate.is_inside(rows[-1].keys):
            continue
        row = _row(questions, claims, number)
        if row is not None:
            rows.append(row)
    problems = [problem_of(index, rules, rows) for index in range(len(rules))]
    problems += [
        f"The {row.layer} at {show_path(row.path)!r} is {row.explanation}. Define it, or "
        "leave stacks out by `applies_to`, or this layer by `target`."
        for row in rows
        if row.status == "refused"
    ]
    has_defaults = any(() in rule.tiers for rule in rules)
    return Plan(
        tuple(rows),
        problem=next(filter(None, problems), None),
        notes=tuple(notes_on(rules, rows)),
        by_default=has_defaults or not questions.named,
    )


@dataclasses.dataclass(frozen=True)
class Claim:
    """The claim of a call's adapters on a candidate.

    - `rule`, `tier`: the places of the first rule and tier that claim it. The smaller ones win.
    - `classes`: the adapters of this tier that apply; none if nobody claims the candidate.
    - `is_selected`: whether the mask selects the candidate.
    """

    candidate: Candidate
    is_selected: bool
    rule: int | None = None
    tier: int | None = None
    classes: tuple[AdapterClass, ...] = ()

    def comes_before(self, claim: "Claim") -> bool:
        return (self.rule, self.tier) < (claim.rule, claim.tier)


class Questions:
    """Asks the adapter classes of a call about modules.

    If a class that the user named fails, so does the call. If another class fails, its answer is
    `False`, and the first time there is a warning.
    """

    def __init__(self, registry: Registry, rules: tuple[Rule, ...]):
        self.registry, self.rules = registry, rules
        self.named = frozenset(cls for rule in rules for cls in rule.named)
        self._failed: set[AdapterClass] = set()

    def claim(self, candidate: Candidate, is_selected: bool) -> Claim:
        """The claim of the first rule whose target matches, by its first tier that applies."""
        for index, rule in enumerate(self.rules):
            if not rule.matches(candidate.path):
                continue
            for place, tier in enumerate(rule.tiers):
                if classes := self._applying(tier, candidate):
                    return Claim(candidate, is_selected, index, place, classes)
        return Claim(candidate, is_selected)

    def misses_target(self, candidate: Candidate) -> bool:
        """Whether a rule would claim the unclaimed candidate, but its target does not match."""
        rules = [rule for rule in self.rules if not rule.matches(candidate.path)]
        tiers = dict.fromkeys(tier for rule in rules for tier in rule.tiers)
        return any(self._applying(tier, candidate) for tier in tiers)

    def why_not(self, candidate: Candidate) -> str | None:
        """The first reason of an adapter against a layer that it nearly claims."""
        tiers = dict.fromkeys(tier for rule in self.rules for tier in rule.tiers)
        classes = (cls for tier in tiers for cls in tier or default_adapters(candidate.layer))
        reasons = (why_not(cls, candidate.layer) for cls in dict.fromkeys(classes))
        return next(filter(None, reasons), None)

    def distribution(self, cls: AdapterClass) -> str | None:
        provider = self.registry.provider(cls)
        return None if provider is None else provider.distribution

    def _applying(self, tier: Tier, candidate: Candidate) -> tuple[AdapterClass, ...]:
        classes = tier or default_adapters(candidate.layer)
        return tuple(cls for cls in classes if self._applies(cls, candidate))

    def _applies(self, cls: AdapterClass, candidate: Candidate) -> bool:
        try:
            return bool(cls.applies_to(candidate.layer))
        except Exception as err:
            where = show_place(type(candidate.layer), candidate.path)
            failure = (
                f"{cls.__name__}.applies_to raised {type(err).__name__} on {where}: {err}\n"
                "It is asked about every module of a model, and must return False for a module "
                "that it does not know."
            )
            if cls in self.named:
                raise WrapperError(failure) from err
            if cls not in self._failed:
                self._failed.add(cls)
                block = how_to_block(self.distribution(cls))
                warn(f"{failure} This call takes its failures as False.{block}")
            return False


def _row(questions: Questions, claims: Sequence[Claim], number: int) -> PlanRow | None:
    """The row of a module, or `None` if no adapter is for the module itself."""
    claim = claims[number]
    candidate, module = claim.candidate, claim.candidate.module
    row = functools.partial(
        PlanRow,
        candidate.path,
        type(candidate.layer).__name__,
        keys=candidate.keys,
        spec=claim.rule,
        is_selected=claim.is_selected,
    )
    if is_adapter(module):
        cls, distribution = type(module), questions.distribution(type(module))
        return row("already adapted", cls, distribution, rank=module.rank, alpha=module.alpha)
    if claim.rule is None:
        if candidate.inside_norm is not None:
            return None
        if questions.misses_target(candidate):
            return row("target does not match")
        reason = _why_quantized(module) or questions.why_not(candidate)
        # A layer that an adapter rejects may hold its arrays in nodes of another library.
        has_row = reason is not None or _owns_arrays(module)
        return row("no wrapper applies", reason=reason) if has_row else None
    if candidate.inside_norm is not None:
        return row(candidate.inside_norm if claim.is_selected else "mask does not select")
    inside = _inside(claims, number)
    cls = _chosen(questions, claim, inside)
    if cls is None:
        return None
    if any(is_adapter(inner.candidate.module) for inner in inside):
        return row("already adapted")
    if claim.is_selected and (reason := _why_not_stacked(cls, module)):
        return row("refused", cls, questions.distribution(cls), reason=reason)
    rule, arguments = questions.rules[claim.rule], takes(cls)
    alpha = rule.alpha
    if alpha is None:
        alpha = 1.0 if rule.rank is None else cls.default_alpha(rule.rank)
    return row(
        "wrapped" if claim.is_selected else "mask does not select",
        cls,
        questions.distribution(cls),
        rule.rank if "rank" in arguments else None,
        alpha if "alpha" in arguments else None,
        options=rule.options,
        role=candidate.role if claim.is_selected else None,
        alpha_is_default=rule.alpha is None,
    )


def _inside(claims: Sequence[Claim], number: int) -> Sequence[Claim]:
    """The claims on the modules inside a candidate. They follow it."""
    keys, end = claims[number].candidate.keys, number + 1
    while end < len(claims) and claims[end].candidate.is_inside(keys):
        end += 1
    return claims[number + 1 : end]


def _chosen(questions: Questions, claim: Claim, inside: Sequence[Claim]) -> AdapterClass | None:
    """The class that adapts a candidate, or `None` if modules inside of it are adapted instead.

    They are adapted instead if an earlier rule or tier claims one of them.

    **Raises:** `SelectionError` if several classes of equal priority claim the candidate, or it and
    a module inside of it.
    """
    path = claim.candidate.path
    claimed_paths = dict.fromkeys(claim.classes, path)
    for inner in inside:
        module, inside_norm = inner.candidate.module, inner.candidate.inside_norm
        is_rival = inner.is_selected and inside_norm is None and not is_adapter(module)
        if inner.rule is None or not is_rival or claim.comes_before(inner):
            continue
        if inner.comes_before(claim):
            return None
        for cls in inner.classes:
            claimed_paths.setdefault(cls, inner.candidate.path)
    if len(claimed_paths) > 1:
        lines: list[str] = []
        for cls, claimed in claimed_paths.items():
            provider = questions.registry.provider(cls)
            name = cls.__name__ if provider is None else f'wrapper="{provider.qualified_name}"'
            lines.append(f"{name}, for {show_path(claimed)!r}")
        raise SelectionError(
            f"Several adapters of equal priority claim {show_path(path)!r}, a "
            f"{type(claim.candidate.module).__name__}:\n{bullets(lines, FEW)}\n"
            "Name the one you want. A list in `wrapper=` is in order of priority."
        )
    return claim.classes[0]


def advised(plan: Plan, model: PyTree, registry: Registry) -> Plan:
    """`plan`, with the layers that it leaves out, and with advice in their rows.

    Queries the adapters of all installed plugins, and loads the plugins if a layer with matrices is
    left out. (If the call names classes, it loads nothing, and only queries the loaded plugins. The
    remaining plugins may have adapters, so there is no advice on how to declare.) This is why
    `apply_lora` and `net.lora` give no advice. A plan does not query when it prints either, because
    it would have to keep the model, and would change as plugins are loaded.
    """
    adapted = {row.keys for row in plan.having("wrapped", "already adapted")}
    left_out = layers_left_out(model, count_plain(model), adapted)
    layers = dict(modules_in(model))
    asks_all = plan.by_default or not registry.discover

    def advice_for(row: PlanRow) -> str | None:
        layer: PyTree = layers[row.keys]
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
            more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
            origins = ", ".join(dict.fromkeys(wrapper.distribution for wrapper in applying))
            return f"none of this call; {', '.join(names[:_NAMED])}{more} ({origins})"
        if row.reason is not None or not asks_all:
            return None
        reasons = filter(None, (why_not(wrapper.cls, layer) for wrapper in wrappers))
        declare = f"declare {', '.join(matrices)} (docs/operators.md)"
        return f"no installed adapter applies; {next(reasons, declare)}"

    rows = tuple(dataclasses.replace(row, advice=advice_for(row)) for row in plan.rows)
    return dataclasses.replace(plan, rows=rows, left_out=left_out)


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
    if not {*"*."} & {*axes}:
        return len(axes.split())
    if isinstance(layer, _WITH_MATRICES) and name.startswith("weight"):
        return 2 + getattr(layer, "num_spatial_dims", 0)
    is_norm = isinstance(layer, eqx.nn.LayerNorm | eqx.nn.RMSNorm)
    return len(layer.shape) if is_norm else math.inf


def _is_integer_matrix(value: PyTree) -> bool:
    return eqx.is_array(value) and value.ndim > 1 and jnp.issubdtype(value.dtype, jnp.integer)
