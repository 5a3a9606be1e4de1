"""The messages about layers that a call leaves out."""

import re
from collections.abc import Iterable, Iterator, Sequence

from .._errors import warn
from .._paths import FEW, bullets, nearest, show_path, show_place
from .._tree import NORMALISED
from .candidates import Candidate, LinearInBlocks, NamedLayers
from .plan import Plan, PlannedRow, PlanRow
from .specs import AdapterClass, Rule

_NO_BLOCKS = (
    "The model has no repeated blocks (modules of one class in a list, or a stack). Leave `target` "
    "out to adapt every layer, or give a regex on paths, or a list of names."
)
_WHY_NOT_IN_NORMS = (
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


def problems_of(rules: Sequence[Rule], rows: Sequence[PlannedRow]) -> Iterator[str]:
    """The errors of rules that select nothing, and of layers that are refused."""
    yield from filter(None, (_problem_of(rule, rows) for rule in rules))
    for row in (x.row for x in rows if x.row.status == "refused"):
        yield (
            f"The {row.layer} at {show_path(row.path)!r} is {row.explanation}. Define it, or "
            "leave stacks out by `applies_to`, or this layer by `target`."
        )


def _problem_of(rule: Rule, rows: Sequence[PlannedRow]) -> str | None:
    """The error of a rule, or of one of its names, that matches no layer at all, masked or not."""
    paths = [x.row.path for x in rows]
    missing = rule.target.missing_from(paths) if isinstance(rule.target, NamedLayers) else []
    matches = ("wrapped", "already adapted", "mask does not select", "refused")
    if not missing and any(x.rule is rule and x.row.status in matches for x in rows):
        return None
    pattern = "" if rule.target is None else [*missing, rule.target.pattern][0]
    matching = [] if missing else [x for x in rows if rule.matches(x.row.path)]

    def describe(planned: PlannedRow) -> str:
        row, claiming, status = planned.row, planned.rule, planned.row.explanation
        if row.status == "target does not match" and rule.matches(row.path):
            status = "no wrapper applies"  # unlike a wrapper of another rule
        elif row.status == "wrapped" and claiming is not None and claiming is not rule:
            status = f"adapted by {claiming.label}"
        return f"{show_path(row.path)}: {row.layer}, {status}"

    target = f"target {pattern!r}" if pattern else "every layer"
    names = ", ".join(cls.__name__ for tier in rule.tiers for cls in tier.classes)
    lines = [f"{rule.label} ({target}, wrapper {names}) selects no layer."]
    if isinstance(rule.target, LinearInBlocks) and not rule.target.paths:
        lines.append(_NO_BLOCKS)
    elif matching:
        lines.append("It matches these layers, and adapts none of them:")
        lines.append(bullets(map(describe, matching), FEW))
        if any(x.row.status in NORMALISED.values() and x.rule is rule for x in matching):
            lines.append(_WHY_NOT_IN_NORMS)
        if any(x.row.wrapper is None and x.rule is None for x in matching):
            lines.append(_MORE_ADAPTERS)
    elif rows:
        lines.append("The nearest paths are:")
        lines.append(bullets(map(describe, _nearest_rows(pattern, rows))))
    if adaptable := [x.row for x in rows if _is_adaptable(x.row)]:
        lines.append(f"The wrappers of this call can adapt these layers:\n{_paths(adaptable)}")
    elif rows:
        lines.append("The wrappers of this call can adapt none of the model's layers.")
    else:
        lines.append(_NO_MODULE)
    return "\n".join(lines)


def tie(candidate: Candidate, claims: Iterable[str]) -> str:
    """The error of several adapters that claim a module, or modules inside of it."""
    return (
        f"Several adapters of equal priority claim {show_path(candidate.path)!r}, a "
        f"{type(candidate.module).__name__}:\n{bullets(claims, FEW)}\n"
        "Name the one you want. A list in `wrapper=` is in order of priority."
    )


def failed_claim(cls: AdapterClass, candidate: Candidate, err: Exception) -> str:
    """The error, or warning, of an `applies_to` that raises."""
    where = show_place(type(candidate.layer), candidate.path)
    return (
        f"{cls.__name__}.applies_to raised {type(err).__name__} on {where}: {err}\n"
        "It is asked about every module of a model, and must return False for a module "
        "that it does not know."
    )


def _nearest_rows(pattern: str, rows: Sequence[PlannedRow]) -> list[PlannedRow]:
    """The rows whose paths end most like `pattern`, layers that can be adapted first."""
    names = pattern.count("/") + 1
    ends: dict[str, PlannedRow] = {}
    for planned in rows:
        ends.setdefault("/".join(planned.row.path.split("/")[-names:]), planned)
    near = [ends[end] for end in nearest(pattern, ends, n=len(ends))]
    return sorted(near, key=lambda planned: not _is_adaptable(planned.row))[:5]


def _is_adaptable(row: PlanRow) -> bool:
    return row.status in ("wrapped", "target does not match", "mask does not select")


def _paths(rows: Iterable[PlanRow]) -> str:
    return bullets((show_path(row.path) for row in rows), FEW)


def notes_on(rules: Sequence[Rule], rows: Sequence[PlannedRow]) -> Iterator[str]:
    """A note for each target such as `layers/1` that also selects paths such as `layers/10`."""
    for rule in rules:
        target = rule.target
        # "layers/1", "layers/(1|2)" and "layers/[01]", but not "layers/[0-9]".
        if not isinstance(target, re.Pattern) or not re.search(r"(?<!-)\d[\])]*$", target.pattern):
            continue
        whole = f"(?:{target.pattern})" if "|" in target.pattern else target.pattern
        ends_here = re.compile(rf"{whole}(?!\d)", target.flags)
        selected = [x.row for x in rows if x.rule is rule and x.is_selected]
        if longer := [row for row in selected if not ends_here.search(row.path)]:
            yield (
                f"The target {target.pattern!r} ends in a number, and also selects paths in which "
                f"the number continues:\n{_paths(longer)}\n"
                f"To leave them out, write {whole + '(/|$)'!r}."
            )


def warn_of_omissions(plan: Plan) -> None:
    """Warn about layers in norms, and if nothing was adapted, due to adapters or the mask."""
    if in_norms := plan.having(*NORMALISED.values()):
        warn(f"{_WHY_NOT_IN_NORMS} These were not adapted:\n{_paths(in_norms)}")
    if plan.carriers and not plan.wrapped:
        warn(
            "Every selected layer carries an adapter already, so nothing was adapted. Merge or "
            f"unwrap first to adapt them again:\n{_paths(plan.carriers)}"
        )
    masked = plan.having("mask does not select", "already adapted")
    if masked and not (plan.carriers or plan.wrapped):
        warn(f"The mask selects none of these layers, so nothing was adapted:\n{_paths(masked)}")
