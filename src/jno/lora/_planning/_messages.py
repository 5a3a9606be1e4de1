"""The plan of a call, and messages about layers that are not adapted."""

import dataclasses
import re
from collections.abc import Iterable, Iterator
from typing import Any

from jaxtyping import PyTree

from .._errors import warn
from .._paths import FEW, bullets, nearest, show_path
from .._registry import Registry
from .._tree import (
    NORMALISED,
    claims,
    count_plain,
    fields_of,
    is_parameter,
    layers_left_out,
    modules_in,
    why_not,
)
from ._masks import Selector
from ._plan import Plan, PlanRow
from ._roles import LinearInBlocks, NamedLayers
from ._specs import Rule
from ._walk import Walk

_NAMED = 4  # how many adapters the advice in a row names

_NO_BLOCKS = (
    "The model has no repeated blocks (modules of one class in a list, or a stack). Leave `target` "
    "out to adapt every layer, or give a regex on paths, or a list of names."
)
_WHY_REFUSED = (
    "Layers inside eqx.nn.WeightNorm and SpectralNorm are not adapted, because the norm would "
    "rescale or bypass the adapter. To adapt the norm and its layer as one, with the update inside "
    'the norm, ask for it: wrapper=["lora", "lora-in-norm"].'
)
_MORE_ADAPTERS = (
    '`wrapper="auto"` tries more adapters, and `jno.lora.registered()` lists all. To adapt '
    "a layer of your own, declare the axes of its arrays (docs/operators.md shows how)."
)
_NO_MODULE = (
    "The model holds no Equinox module with plain arrays. Haliax's layers need jno-lora[haliax]. "
    "Declare bare arrays, such as the parameters of Flax or Haiku (docs/flax-and-haiku.md). "
    "A skeleton needs eqx.filter_eval_shape(lambda model: apply_lora(model, ...), skeleton)."
)


def make_plan(
    registry: Registry, model: PyTree, rules: tuple[Rule, ...], selects: Selector
) -> Plan:
    """The plan of a call: one walk over the model, and the first error."""
    walk = Walk(registry, model, rules, selects)
    problems = [_problem_of(walk, index) for index in range(len(rules))]
    problems += [
        f"The {row.layer} at {show_path(row.path)!r} is {row.explanation}. Define it, or "
        "leave stacks out by `applies_to`, or this layer by `target`."
        for row in walk.rows
        if row.status == "refused"
    ]
    notes = tuple(_continued_numbers(walk))
    by_default = walk.asks_layers or not walk.named
    return Plan(
        tuple(walk.rows), next(filter(None, problems), None), notes=notes, by_default=by_default
    )


def _problem_of(walk: Walk, index: int) -> str | None:
    """The error of a rule, or of one of its names, that matches no layer at all, masked or not."""
    rule, missing = walk.rules[index], list[str]()
    if isinstance(rule.target, NamedLayers):
        missing = rule.target.missing_from([row.path for row in walk.rows])
    if index in walk.matched and not missing:
        return None
    pattern = "" if rule.target is None else [*missing, rule.target.pattern][0]
    matching = [] if missing else [row for row in walk.rows if rule.matches(row.path)]

    def describe(row: PlanRow) -> str:
        status = row.explanation
        if row.status == "target does not match" and rule.matches(row.path):
            status = "no wrapper applies"  # unlike a wrapper of another rule
        elif row.status == "wrapped" and row.spec is not None and row.spec != index:
            status = f"adapted by {walk.rules[row.spec].label}"
        return f"{show_path(row.path)}: {row.layer}, {status}"

    target = f"target {pattern!r}" if pattern else "every layer"
    names = ", ".join(cls.__name__ for tier in rule.tiers for cls in tier)
    lines = [f"{rule.label} ({target}, wrapper {names}) selects no layer."]
    if isinstance(rule.target, LinearInBlocks) and not rule.target.paths:
        lines.append(_NO_BLOCKS)
    elif matching:
        lines.append("It matches these layers, and adapts none of them:")
        lines.append(bullets(map(describe, matching), FEW))
        if any(row.spec == index for row in matching):
            lines.append(_WHY_REFUSED)
        if any(row.wrapper is None and row.spec is None for row in matching):
            lines.append(_MORE_ADAPTERS)
    elif walk.rows:
        lines.append("The nearest paths are:")
        lines.append(bullets(map(describe, _nearest_rows(pattern, walk.rows))))
    if adaptable := list(filter(_is_adaptable, walk.rows)):
        lines.append(f"The wrappers of this call can adapt these layers:\n{_paths(adaptable)}")
    elif walk.rows:
        lines.append("The wrappers of this call can adapt none of the model's layers.")
    else:
        lines.append(_NO_MODULE)
    return "\n".join(lines)


def _nearest_rows(pattern: str, rows: list[PlanRow]) -> list[PlanRow]:
    """The rows whose paths end most like `pattern`, layers that can be adapted first."""
    names = pattern.count("/") + 1
    ends: dict[str, PlanRow] = {}
    for row in rows:
        ends.setdefault("/".join(row.path.split("/")[-names:]), row)
    near = [ends[end] for end in nearest(pattern, ends, n=len(ends))]
    return sorted(near, key=lambda row: not _is_adaptable(row))[:5]


def _is_adaptable(row: PlanRow) -> bool:
    return row.status in ("wrapped", "target does not match", "mask does not select")


def _paths(rows: Iterable[PlanRow]) -> str:
    return bullets((show_path(row.path) for row in rows), FEW)


def _continued_numbers(walk: Walk) -> Iterator[str]:
    """A note for each target such as `layers/1` that also selects paths such as `layers/10`."""
    for index, rule in enumerate(walk.rules):
        target = rule.target
        # "layers/1", "layers/(1|2)" and "layers/[01]", but not "layers/[0-9]".
        if not isinstance(target, re.Pattern) or not re.search(r"(?<!-)\d[\])]*$", target.pattern):
            continue
        whole = f"(?:{target.pattern})" if "|" in target.pattern else target.pattern
        ends_here = re.compile(rf"{whole}(?!\d)", target.flags)
        selected = [row for row in walk.rows if row.spec == index]
        if longer := [row for row in selected if not ends_here.search(row.path)]:
            yield (
                f"The target {target.pattern!r} ends in a number, and also selects paths in which "
                f"the number continues:\n{_paths(longer)}\n"
                f"To leave them out, write {whole + '(/|$)'!r}."
            )


def warn_of_omissions(plan: Plan) -> None:
    """Warn about layers in norms, and if nothing was adapted, due to adapters or the mask."""
    refusals: Any = NORMALISED.values()
    if refused := plan.having(*refusals):
        warn(f"{_WHY_REFUSED} These were not adapted:\n{_paths(refused)}")
    if plan.wrapped:
        return
    carriers = plan.having("already adapted")
    if selected := [row for row in carriers if row.spec is not None]:
        warn(
            "Every selected layer carries an adapter already, so nothing was adapted. Merge or "
            f"unwrap first to adapt them again:\n{_paths(selected)}"
        )
    elif masked := plan.having("mask does not select") or carriers:
        warn(f"The mask selects none of these layers, so nothing was adapted:\n{_paths(masked)}")


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
        layer: Any = layers[row.keys]
        values = fields_of(layer).items()
        matrices = [name for name, x in values if is_parameter(x) and len(x.shape) > 1]
        if row.status != "no wrapper applies" or not matrices:
            return None
        records = registry.records(strict=False) if asks_all else registry.loaded()
        wrappers = [wrapper for record in records for wrapper in record.wrappers]
        if applying := [wrapper for wrapper in wrappers if claims(wrapper.cls, layer)]:
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
