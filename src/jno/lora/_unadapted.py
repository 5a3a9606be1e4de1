"""What a call did not adapt as it was asked to: the errors and warnings that say why."""

import warnings

from ._contract import LoRAWrapper
from ._errors import JnoLoraWarning, SelectionError
from ._paths import FEW, bullets, nearest, show_path
from ._plan import NORMALISED, Plan, PlanRow
from ._selection import Spec
from ._walk import Walk

_WHY_REFUSED = (
    "Layers inside eqx.nn.WeightNorm and SpectralNorm are not adapted: those rewrite the very "
    "weight that an adapter would add to, so that the adapter would be rescaled or bypassed. To "
    "adapt norm and layer as one, the update inside the norm, ask for it: "
    'wrapper=["lora", "lora-in-norm"].'
)


def check_every_spec_matched(specs: tuple[Spec, ...], walk: Walk, rows: list[PlanRow]) -> None:
    """**Raises:** `SelectionError` for a spec that matches no layer at all (mask or not)."""
    refused = [row for row in rows if row.status in NORMALISED.values()]
    accounted = walk.matched | {row.spec for row in rows if row.status not in NORMALISED.values()}
    for index, spec in enumerate(specs):
        if index in accounted:
            continue
        open_to = ("wrapped", "target does not match", "mask does not select")
        adaptable = [row.path for row in rows if row.status in open_to]
        lines = [f"{spec.describe()} selects no layer."]
        inside = [row for row in refused if row.spec == index]
        if inside:
            lines.append(f"{_WHY_REFUSED} It matches only:")
            lines.append(bullets((f"{show_path(r.path)}: {r.status}" for r in inside), FEW))
        taken = walk.taken_before(index)
        if taken:
            lines.append("Earlier specs, which win, have taken what it matches:")
            lines.append(bullets(taken, FEW))
        if spec.target is not None and not any(spec.matches(row.path) for row in rows):
            near = nearest(spec.target.pattern, [row.path for row in rows])
            if near:
                lines.append("The nearest paths are:\n" + bullets(show_path(p) for p in near))
        if adaptable:
            lines.append(
                "The layers that the wrappers of this call can adapt are:\n"
                + bullets(map(show_path, adaptable), FEW)
            )
        elif rows:
            lines.append(
                "The wrappers of this call can adapt none of the model's layers:\n"
                + bullets(
                    (f"{show_path(row.path)}: {row.layer}{_because(row)}" for row in rows), FEW
                )
            )
        else:
            lines.append(
                "The model holds no Equinox module with arrays. (To adapt a skeleton of shapes: "
                "eqx.filter_eval_shape(lambda model: apply_lora(model, ...), skeleton).)"
            )
        lines.append("`plan_lora(...)` (or `net.plan(...)`) explains every candidate.")
        raise SelectionError("\n".join(lines))


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
