"""What a call did not adapt as it was asked to: the errors and warnings that say why."""

import warnings

from .._contract import LoRAWrapper
from .._errors import JnoLoraWarning, SelectionError
from .._paths import FEW, bullets, nearest, show_path
from .._tree import NORMALISED
from ._plan import Plan, PlanRow, PlanStatus
from ._specs import Spec
from ._walk import Walk

_WHY_REFUSED = (
    "Layers inside eqx.nn.WeightNorm and SpectralNorm are not adapted: those rewrite the very "
    "weight that an adapter would add to, so that the adapter would be rescaled or bypassed. To "
    "adapt norm and layer as one, the update inside the norm, ask for it: "
    'wrapper=["lora", "lora-in-norm"].'
)
_OTHER_ADAPTERS = (
    '`wrapper="auto"` asks every installed adapter that has `auto = True`; others are asked for by '
    "name (`jno-lora adapters` lists them)."
)


def check_every_spec_matched(specs: tuple[Spec, ...], walk: Walk, rows: list[PlanRow]) -> None:
    """**Raises:** `SelectionError` for a spec that matches no layer at all (mask or not)."""
    refused = [row for row in rows if row.status in NORMALISED.values()]
    accounted = walk.matched | {row.spec for row in rows if row.status not in NORMALISED.values()}
    for index, spec in enumerate(specs):
        if index in accounted:
            continue
        open_to: tuple[PlanStatus, ...] = (
            "wrapped",
            "target does not match",
            "mask does not select",
        )
        adaptable = [row.path for row in rows if row.status in open_to]
        lines = [f"{spec.describe()} selects no layer."]
        # Without a target it matches everything, which is listed below where it is the reason.
        unclaimed = [] if spec.target is None else walk.unclaimed_by(index)
        if unclaimed:
            lines.append("It matches these, but none of its wrappers adapts them:")
            lines.append(_listed(unclaimed))
            lines.append(_OTHER_ADAPTERS)
        inside = [row for row in refused if row.spec == index]
        if inside:
            lines.append(f"{_WHY_REFUSED} It matches only:")
            lines.append(bullets((f"{show_path(r.path)}: {r.status}" for r in inside), FEW))
        taken = walk.taken_before(index)
        if taken:
            lines.append("Earlier specs, which win, have taken what it matches:")
            lines.append(bullets(taken, FEW))
        if spec.target is not None and not any(spec.matches(row.path) for row in rows):
            near = _nearest(spec.target.pattern, rows, open_to)
            if near:
                lines.append("The nearest paths are:\n" + bullets(near))
        if adaptable:
            lines.append(
                "The layers that the wrappers of this call can adapt are:\n"
                + bullets(map(show_path, adaptable), FEW)
            )
        elif len(unclaimed) < len(rows):
            lines.append(
                "The wrappers of this call can adapt none of the model's layers:\n" + _listed(rows)
            )
        elif not rows:
            lines.append(
                "The model holds no Equinox module with arrays. (To adapt a skeleton of shapes: "
                "eqx.filter_eval_shape(lambda model: apply_lora(model, ...), skeleton).)"
            )
        lines.append(
            "Once something is selected, `plan_lora(...)` (or `net.plan(...)`) explains every "
            "candidate."
        )
        raise SelectionError("\n".join(lines))


def _nearest(pattern: str, rows: list[PlanRow], open_to: tuple[PlanStatus, ...]) -> list[str]:
    """The paths most like `pattern`, those of layers that can be adapted first."""
    by_path = {row.path: row for row in rows}
    near = [by_path[path] for path in nearest(pattern, by_path, n=max(len(by_path), 1))]
    first = [show_path(row.path) for row in near if row.status in open_to]
    others = (row for row in near if row.status not in open_to)
    return [*first, *(f"{show_path(r.path)}: {r.layer}, {r.explanation}" for r in others)][:5]


def _listed(rows: list[PlanRow]) -> str:
    return bullets((f"{show_path(row.path)}: {row.layer}{_because(row)}" for row in rows), FEW)


def _because(row: PlanRow) -> str:
    if row.status == "already adapted":
        return f" ({row.explanation})"
    return "" if row.reason is None else f" ({row.reason})"


def warn_of_what_was_left_out(plan: Plan) -> None:
    """Warn of what is in the way where something, or everything, was left out."""

    def warn(message: str, rows: tuple[PlanRow, ...]) -> None:
        listed = bullets((show_path(row.path) for row in rows), FEW)
        warnings.warn(f"{message}\n{listed}", JnoLoraWarning, stacklevel=5)

    refused = plan.having("inside WeightNorm", "inside SpectralNorm")
    if refused:
        warn(f"{_WHY_REFUSED} These were not adapted:", refused)
    if plan.wrapped:
        return
    masked = plan.having("mask does not select")
    carriers = plan.having("already adapted")
    adapted = tuple(row for row in carriers if row.spec is not None)
    if adapted:
        warn(
            "Every selected layer carries an adapter already, so nothing was adapted. Merge or "
            "unwrap first to adapt them anew:",
            adapted,
        )
    elif masked:
        warn("The mask selects none of these layers, so nothing was adapted:", masked)
    elif carriers:
        warn(
            "The mask selects no layer that could be adapted, so nothing was. These carry an "
            "adapter already:",
            carriers,
        )


def warn_of_clamped_ranks(rows: list[PlanRow], adapters: list[LoRAWrapper]) -> None:
    """Warn where a layer is too small for the rank that was asked for."""
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
