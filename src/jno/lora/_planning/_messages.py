"""The plan of a call, with errors and warnings about layers that are not adapted as it asked."""

import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from jaxtyping import PyTree

from .._errors import warn
from .._paths import FEW, bullets, nearest, show_path
from .._registry import Registry
from .._showing import grouped
from .._tree import NORMALISED, modules_in
from ._advice import matrices_of
from ._masks import Selector
from ._plan import Plan, PlanRow
from ._questions import Questions
from ._roles import LinearInBlocks, NamedLayers
from ._specs import Rule
from ._walk import Walk

_WHY_REFUSED = (
    "Layers inside eqx.nn.WeightNorm and SpectralNorm are not adapted: the norm rewrites the "
    "weight that the adapter adds to, and would rescale or bypass the adapter. To adapt the norm "
    "and its layer as one, with the update inside the norm, ask for it: "
    'wrapper=["lora", "lora-in-norm"].'
)
_MORE_ADAPTERS = (
    '`wrapper="auto"` asks every installed adapter that has `auto = True`; a name or variant asks '
    "for any adapter (`jno-lora adapters` lists them)."
)
_PASSED_OVER = "No wrapper of this call applies to these layers, which hold matrices:"
_YOUR_LAYERS = (
    "To adapt a layer of your own, say what the axes of its arrays mean: for spectral weights, by "
    "`ModeWeights` in a subclass of an adapter of jno_lora_foundax; for any array, by `declare` of "
    'jno_lora_arrays. "Your own spectral layer", in docs/operators.md, shows both.'
)
_CAN_ADAPT = "The layers that the wrappers of this call can adapt are:"
_NO_MODULE = (
    "The model holds no Equinox module with arrays. To adapt bare arrays, such as the parameters "
    'of Flax or Haiku, declare them: see jno_lora_arrays, of pip install "jno-lora[arrays]". To '
    "adapt a skeleton of shapes: "
    "eqx.filter_eval_shape(lambda model: apply_lora(model, ...), skeleton)."
)


def make_plan(
    registry: Registry, model: PyTree, rules: tuple[Rule, ...], selects: Selector
) -> Plan:
    """The plan of a call: one walk over the model, with the error of a rule that finds nothing."""
    questions = Questions(registry, {cls for rule in rules for cls in rule.named})
    walk = Walk(questions, model, rules, selects)
    notes = tuple(_continued_numbers(walk))
    by_default = walk.asks_layers or not any(rule.named for rule in rules)
    return Plan(tuple(walk.rows), _problem_of(walk), notes=notes, by_default=by_default)


def _problem_of(walk: Walk) -> str | None:
    """The error of the first rule that matches no layer at all, masked or not."""
    paths = [row.path for row in walk.rows]
    for index, rule in enumerate(walk.rules):
        if index not in walk.matched:
            target = "every layer" if rule.target is None else f"target {rule.target.pattern!r}"
            names = ", ".join(cls.__name__ for tier in rule.tiers for cls in tier)
            head = f"{rule.label} ({target}, wrapper {names}) selects no layer."
            return "\n".join([head, *_explain(walk, index)])
        unknown = rule.target.missing_from(paths) if isinstance(rule.target, NamedLayers) else []
        if unknown:
            # Names are compared with as many names at the end of each path.
            length = unknown[0].count("/") + 1
            ends = ["/".join(path.split("/")[-length:]) for path in paths]
            head = (
                f"{rule.label}: no layer has a path (its names are joined by slashes) that ends in "
                f"{unknown[0]!r}. The nearest paths end in:\n{bullets(nearest(unknown[0], ends))}"
            )
            adaptable = _adaptable(walk).values()
            return "\n".join([head, _CAN_ADAPT, _listed(adaptable)] if adaptable else [head])
    return None


_FEW = 3
# "layers/1", "layers/(1|2)" and "layers/[01]", but not "layers/[0-9]".
_ENDS_IN_NUMBER = re.compile(r"(?<![\\-])\d[\])]*$")


def _continued_numbers(walk: Walk) -> Iterator[str]:
    """For each target such as `layers/1`, which of the selected paths are like `layers/10`."""
    for index, rule in enumerate(walk.rules):
        target = rule.target
        if not isinstance(target, re.Pattern) or not _ENDS_IN_NUMBER.search(target.pattern):
            continue
        paths = [
            row.path
            for row in walk.rows
            if row.spec == index
            and all(row.path[match.end() :][:1].isdigit() for match in target.finditer(row.path))
        ]
        if paths:
            yield (
                f"The target {target.pattern!r} ends in a number, and also selects paths in which "
                f"the number goes on:\n{bullets(map(show_path, paths), _FEW)}\n"
                f"To leave them out, write {target.pattern + '(/|$)'!r}."
            )


def _explain(walk: Walk, index: int) -> Iterator[str]:
    rule, rows, adaptable = walk.rules[index], walk.rows, _adaptable(walk)
    if isinstance(rule.target, LinearInBlocks) and not rule.target.paths:
        yield rule.target.missing
    # What the rule would do if it were the only rule.
    alone = Walk(walk.questions, walk.model, (rule,), walk.selects).rows
    # Without a target the rule matches everything, which is listed below if that is the reason.
    matches = [] if rule.target is None else [row for row in alone if rule.matches(row.path)]
    unclaimed = [row for row in matches if row.spec is None]
    if unclaimed:
        yield "It matches these, but none of its wrappers adapts them:"
        yield _listed(unclaimed, _layer)
        yield _MORE_ADAPTERS
    refusals = NORMALISED.values()
    if inside := [row for row in rows if row.spec == index and row.status in refusals]:
        yield f"{_WHY_REFUSED} It matches only:"
        yield _listed(inside, lambda row: f": {row.status}")
    if taken := [row for row in alone if row.spec is not None and row.status not in refusals]:
        yield "Earlier specs, which win, have taken the layers that it matches:"
        yield _listed(taken, lambda row: _taker(walk, row.path))
    if isinstance(rule.target, re.Pattern | NamedLayers):
        yield from _nearest_paths(rule, rows, adaptable)
    if passed_over := _passed_over(walk):
        yield _PASSED_OVER
        yield bullets(passed_over, FEW)
        yield _YOUR_LAYERS
    if adaptable:
        yield _CAN_ADAPT
        yield _listed(adaptable.values())
    elif len(unclaimed) < len(rows):
        yield "The wrappers of this call can adapt none of the model's layers:"
        yield _listed(rows, _layer)
    elif not rows:
        yield _NO_MODULE


def _nearest_paths(rule: Rule, rows: list[PlanRow], adaptable: dict[str, PlanRow]) -> Iterator[str]:
    """Lines with the paths nearest to a target that matches no path. Adaptable layers go first."""
    by_path = {row.path: row for row in rows}
    if rule.target is None or not rows or any(map(rule.matches, by_path)):
        return
    near = nearest(rule.target.pattern, by_path, n=len(by_path))
    near.sort(key=lambda path: path not in adaptable)
    yield "The nearest paths are:"
    yield _listed(
        [by_path[path] for path in near[:5]],
        lambda row: "" if row.path in adaptable else f": {row.layer}, {row.explanation}",
    )


def _adaptable(walk: Walk) -> dict[str, PlanRow]:
    """The layers that a wrapper of the call adapts if they are selected, by their paths."""
    statuses = ("wrapped", "target does not match", "mask does not select")
    return {row.path: row for row in walk.rows if row.status in statuses}


def _taker(walk: Walk, path: str) -> str:
    """The earlier rule that claims the layer at `path`, or a layer around it."""
    for row in walk.rows:
        if row.spec is not None and (row.path in ("", path) or path.startswith(f"{row.path}/")):
            within = "" if row.path == path else f", inside {show_path(row.path)}"
            return f": {walk.rules[row.spec].label}{within}"
    return ""


def _passed_over(walk: Walk) -> list[str]:
    """Lines for the layers with matrices, of other classes than Equinox's, that nothing adapts.

    Layers with a reason are not among them: the reason says more than how to declare layers.
    """
    layers = dict(modules_in(walk.model))
    passed_over: list[tuple[str, str]] = []
    for row in walk.rows:
        layer: Any = layers.get(row.keys)
        is_unknown = row.status == "no wrapper applies" and row.reason is None
        if is_unknown and not type(layer).__module__.startswith("equinox."):
            matrices = ", ".join(f"{name} {form}" for name, form in matrices_of(layer).items())
            passed_over += [(row.path, f"{row.layer} ({matrices})")] if matrices else []
    return [f"{show_path(path)}: {layer}" for path, _, layer in grouped(passed_over)]


def _layer(row: PlanRow) -> str:
    reason = row.explanation if row.status == "already adapted" else row.reason
    return f": {row.layer}" if reason is None else f": {row.layer} ({reason})"


def _listed(rows: Iterable[PlanRow], more: Callable[[PlanRow], str] = lambda row: "") -> str:
    return bullets((f"{show_path(row.path)}{more(row)}" for row in rows), FEW)


def warn_of_omissions(plan: Plan) -> None:
    if refused := plan.having("inside WeightNorm", "inside SpectralNorm"):
        warn(f"{_WHY_REFUSED} These were not adapted:\n{_listed(refused)}")
    if plan.wrapped:
        return
    masked = plan.having("mask does not select")
    carriers = plan.having("already adapted")
    if selected := [row for row in carriers if row.spec is not None]:
        warn(
            "Every selected layer carries an adapter already, so nothing was adapted. Merge or "
            f"unwrap first to adapt them again:\n{_listed(selected)}"
        )
    elif masked:
        warn(f"The mask selects none of these layers, so nothing was adapted:\n{_listed(masked)}")
    elif carriers:
        warn(
            "The mask selects no layer that could be adapted, so nothing was. These carry an "
            f"adapter already:\n{_listed(carriers)}"
        )
