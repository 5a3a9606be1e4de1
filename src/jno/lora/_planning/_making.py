"""The plan of a call: one walk over the model, and a second if only an old variant finds layers."""

import dataclasses

from jaxtyping import PyTree

from .._registry import Registry
from ._continued import continued_numbers
from ._masks import Selector
from ._messages import problem_of, warn_of_former_variants
from ._plan import Plan
from ._questions import Questions
from ._specs import Rule
from ._walk import Walk


def make_plan(
    registry: Registry, model: PyTree, rules: tuple[Rule, ...], selects: Selector
) -> Plan:
    questions = Questions(registry, {cls for rule in rules for cls in rule.named})
    walk = Walk(questions, model, rules, selects)
    widened = list(rules)
    for index, rule in enumerate(rules):
        if rule.former and index not in walk.selecting:
            widened[index] = dataclasses.replace(rule, tiers=(*rule.tiers, *rule.former))
    if widened != [*rules]:
        second = Walk(questions, model, tuple(widened), selects)
        walk = second if second.selecting - walk.selecting else walk
    warn_of_former_variants(walk)
    notes = tuple(continued_numbers(walk))
    by_default = walk.asks_layers or not any(rule.named for rule in rules)
    return Plan(tuple(walk.rows), problem_of(walk), notes=notes, by_default=by_default)
