"""The plan of a call: one walk over the model, and a second if only an old variant finds layers."""

import dataclasses
from collections.abc import Callable

from jaxtyping import PyTree

from .._paths import KeyPath
from .._registry import Registry
from ._messages import problem_of, warn_of_former_variants
from ._plan import Plan
from ._specs import Rule
from ._walk import Walk


def make_plan(
    registry: Registry, model: PyTree, rules: tuple[Rule, ...], selects: Callable[[KeyPath], bool]
) -> Plan:
    """What the rules of a call do with each layer of `model`.

    - `selects`: whether the mask selects the node at a key path.
    """
    walk = Walk(registry, model, rules, selects)
    if any(rule.former for rule in rules):
        walk = _with_former_variants(walk)
        warn_of_former_variants(walk)
    return Plan(tuple(walk.rows), problem_of(walk))


def _with_former_variants(walk: Walk) -> Walk:
    """`walk`, or a walk in which rules that select nothing find more by an old variant."""
    selecting = _selecting(walk)
    rules = list(walk.rules)
    for index, rule in enumerate(rules):
        if rule.former and index not in selecting:
            rules[index] = dataclasses.replace(rule, tiers=(*rule.tiers, rule.former))
    if rules == [*walk.rules]:
        return walk
    second = Walk(walk.registry, walk.model, tuple(rules), walk.selects)
    return second if _selecting(second) - selecting else walk


def _selecting(walk: Walk) -> set[int]:
    """The indices of the rules that select a layer."""
    statuses = ("wrapped", "already adapted")
    return {row.spec for row in walk.rows if row.status in statuses and row.spec is not None}
