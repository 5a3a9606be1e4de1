"""The plan of a call: the modules of a model, the claims of adapters on them, a row for each."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import PyTree

from .._contract import is_adapter, is_coded, takes
from .._errors import SelectionError, WrapperError, warn
from .._paths import FEW, bullets, show_array, show_path
from .._registry import Registry, how_to_block
from .._tree import default_adapters, fields_of, why_not
from ._candidates import Candidate, Selector, candidates_of
from ._messages import notes_on, problem_of
from ._plan import Plan, PlanRow
from ._specs import AdapterClass, Rule, Tier

# Plugins may not register default adapters for the layers of these packages, because a call that
# names no adapter would change as soon as a plugin is imported.
_CLOSED = {"builtins", "collections", "equinox", "jax"}


def make_plan(
    registry: Registry, model: PyTree, rules: tuple[Rule, ...], selects: Selector
) -> Plan:
    """The plan of a call: a row for each candidate, and the error of a rule without a match."""
    questions = Questions(registry, rules)
    claims = [questions.claim(x, selects(x.keys)) for x in candidates_of(model)]
    rows: list[PlanRow] = []
    for number, claim in enumerate(claims):
        has_adapter = bool(rows) and rows[-1].status in ("wrapped", "already adapted")
        if has_adapter and claim.candidate.is_inside(rows[-1].keys):
            continue
        row = _row(questions, claims, number)
        if row is not None:
            rows.append(row)
    problems = (problem_of(index, rules, rows) for index in range(len(rules)))
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

    def comes_before(self, other: "Claim") -> bool:
        return (self.rule, self.tier) < (other.rule, other.tier)


class Questions:
    """Asks adapter classes about the modules of a model.

    If a class that the user named fails, so does the call. If another class fails, its answer is
    `False`, and the first failure is a warning.
    """

    def __init__(self, registry: Registry, rules: tuple[Rule, ...]):
        self.registry, self.rules = registry, rules
        self.named = frozenset(cls for rule in rules for cls in rule.named)
        self._failed: set[Any] = set()

    def claim(self, candidate: Candidate, is_selected: bool) -> Claim:
        """The claim of the first rule whose target matches, by its first tier that applies."""
        applying: dict[Tier, tuple[AdapterClass, ...]] = {}  # rules may share tiers
        for rule, parsed in enumerate(self.rules):
            if not parsed.matches(candidate.path):
                continue
            for tier, classes in enumerate(parsed.tiers):
                if classes not in applying:
                    applying[classes] = self._applying(classes, candidate)
                if applying[classes]:
                    return Claim(candidate, is_selected, rule, tier, applying[classes])
        return Claim(candidate, is_selected)

    def misses_target(self, candidate: Candidate) -> bool:
        """Whether a rule claims the unclaimed candidate but for its target."""
        others = [rule for rule in self.rules if not rule.matches(candidate.path)]
        tiers = dict.fromkeys(tier for rule in others for tier in rule.tiers)
        return any(self._applying(tier, candidate) for tier in tiers)

    def why_not(self, candidate: Candidate) -> str | None:
        """The first reason of an adapter against a layer that it nearly claims."""
        tiers = dict.fromkeys(tier for rule in self.rules for tier in rule.tiers)
        classes = (cls for tier in tiers for cls in tier or self._registered_for(candidate))
        reasons = (why_not(cls, candidate.layer) for cls in dict.fromkeys(classes))
        return next(filter(None, reasons), None)

    def distribution(self, cls: AdapterClass) -> str | None:
        provider = self.registry.provider(cls)
        return None if provider is None else provider.distribution

    def shown(self, cls: AdapterClass) -> str:
        """A class in a message: the `wrapper=` that selects only this class, if it has a name."""
        provider = self.registry.provider(cls)
        if provider is None:
            return f"{cls.__module__}.{cls.__name__}"
        return f'{cls.__name__} (wrapper="{provider.qualified_name}")'

    def _applying(self, tier: Tier, candidate: Candidate) -> tuple[AdapterClass, ...]:
        classes = tier or self._registered_for(candidate)
        return tuple(cls for cls in classes if self._applies(cls, candidate))

    def _applies(self, cls: AdapterClass, candidate: Candidate) -> bool:
        try:
            return bool(cls.applies_to(candidate.layer))
        except Exception as err:
            failure = (
                f"{cls.__name__}.applies_to raised {type(err).__name__} on the "
                f"{type(candidate.layer).__name__} at {show_path(candidate.path)!r}: {err}\n"
                "It is asked about every module of a model, and must answer False to what it does "
                "not know."
            )
            if cls in self.named:
                raise WrapperError(failure) from err
            block = how_to_block(self.distribution(cls))
            self._warn_once(cls, f"{failure}\nHere the answer counts as False.{block}")
            return False

    def _registered_for(self, candidate: Candidate) -> tuple[AdapterClass, ...]:
        """The adapters that `default_adapters` has for the class of a layer."""
        layer = candidate.layer
        function = default_adapters.dispatch(type(layer))
        if function is default_adapters.dispatch(object):
            return ()
        registered = [cls for cls, f in default_adapters.registry.items() if f is function]
        closed = _CLOSED.intersection(cls.__module__.partition(".")[0] for cls in registered)
        if closed:
            why = (
                f"layers of {', '.join(closed)} get adapters by default from jno-lora alone. Name "
                "the adapter in the call, or register a layer class of your own."
            )
        else:
            try:
                return default_adapters(layer)
            except Exception as err:
                why = f"it raised {type(err).__name__} at {show_path(candidate.path)!r}: {err}"
        self._warn_once(
            function,
            f"The function that {function.__module__} registered with `default_adapters` is left "
            f"out for a {type(layer).__name__}: {why}",
        )
        return ()

    def _warn_once(self, culprit: Any, message: str) -> None:
        if culprit not in self._failed:
            self._failed.add(culprit)
            warn(message)


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
        shown = (f"{questions.shown(c)}, for {show_path(p)!r}" for c, p in claimed_paths.items())
        raise SelectionError(
            f"Several adapters of equal priority claim {show_path(path)!r}, a "
            f"{type(claim.candidate.module).__name__}:\n{bullets(shown, FEW)}\n"
            "Name the adapter you want, or list several in order of priority: "
            'wrapper=["distribution:Name", ...].'
        )
    return claim.classes[0]


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


def _is_integer_matrix(value: Any) -> bool:
    return eqx.is_array(value) and value.ndim > 1 and jnp.issubdtype(value.dtype, jnp.integer)
