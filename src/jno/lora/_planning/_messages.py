"""Messages about the rules that select no layer, and about layers that are left out."""

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from .._errors import warn
from .._paths import FEW, bullets, nearest, show_path
from .._tree import NORMALISED
from ._candidates import LinearInBlocks, NamedLayers
from ._plan import Plan, PlanRow
from ._specs import Rule

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


def problem_of(index: int, rules: Sequence[Rule], rows: Sequence[PlanRow]) -> str | None:
    """The error of a rule, or of one of its names, that matches no layer at all, masked or not."""
    rule, missing = rules[index], list[str]()
    if isinstance(rule.target, NamedLayers):
        missing = rule.target.missing_from([row.path for row in rows])
    found = ("wrapped", "already adapted", "mask does not select")
    if not missing and any(row.spec == index and row.status in found for row in rows):
        return None
    pattern = "" if rule.target is None else [*missing, rule.target.pattern][0]
    matching = [] if missing else [row for row in rows if rule.matches(row.path)]

    def describe(row: PlanRow) -> str:
        status = row.explanation
        if row.status == "target does not match" and rule.matches(row.path):
            status = "no wrapper applies"  # unlike a wrapper of another rule
        elif row.status == "wrapped" and row.spec is not None and row.spec != index:
            status = f"adapted by {rules[row.spec].label}"
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
    elif rows:
        lines.append("The nearest paths are:")
        lines.append(bullets(map(describe, _nearest_rows(pattern, rows))))
    if adaptable := list(filter(_is_adaptable, rows)):
        lines.append(f"The wrappers of this call can adapt these layers:\n{_paths(adaptable)}")
    elif rows:
        lines.append("The wrappers of this call can adapt none of the model's layers.")
    else:
        lines.append(_NO_MODULE)
    return "\n".join(lines)


def _nearest_rows(pattern: str, rows: Sequence[PlanRow]) -> list[PlanRow]:
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


def notes_on(rules: Sequence[Rule], rows: Sequence[PlanRow]) -> Iterator[str]:
    """A note for each target such as `layers/1` that also selects paths such as `layers/10`."""
    for index, rule in enumerate(rules):
        target = rule.target
        # "layers/1", "layers/(1|2)" and "layers/[01]", but not "layers/[0-9]".
        if not isinstance(target, re.Pattern) or not re.search(r"(?<!-)\d[\])]*$", target.pattern):
            continue
        whole = f"(?:{target.pattern})" if "|" in target.pattern else target.pattern
        ends_here = re.compile(rf"{whole}(?!\d)", target.flags)
        selected = [row for row in rows if row.spec == index and row.is_selected]
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
    if plan.carriers:
        warn(
            "Every selected layer carries an adapter already, so nothing was adapted. Merge or "
            f"unwrap first to adapt them again:\n{_paths(plan.carriers)}"
        )
    elif masked := plan.having("mask does not select", "already adapted"):
        warn(f"The mask selects none of these layers, so nothing was adapted:\n{_paths(masked)}")
