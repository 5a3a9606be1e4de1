"""Plans: what a call would do with each layer, and the messages about what it leaves out."""

import dataclasses
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

from .._contract.wrapper import LoRAWrapper
from .._errors import warn
from .._paths import FEW, KeyPath, bullets, nearest, show_path
from .._showing.tables import Printed, Table, table
from .._tree import NORMALISED, LeftOut
from .candidates import LinearInBlocks, NamedLayers
from .specs import Rule

PlanStatus = Literal[
    "wrapped",
    "target does not match",
    "mask does not select",
    "no wrapper applies",
    "already adapted",
    "inside WeightNorm",
    "inside SpectralNorm",
    "refused",
]


@dataclasses.dataclass(frozen=True)
class PlanRow:
    """One candidate: a layer with arrays as direct fields, or that an adapter claims.

    - `path`: where the layer is; `layer`: its class.
    - `status`: `"wrapped"`, or the reason why not.
    - `wrapper`, `distribution`, `rank`, `alpha`: the planned or existing adapter. The rank is the
        requested rank; a small layer clamps the rank, and the default alpha with it. Adapters
        without a rank or alpha have `None`.
    - `reason`: for `"no wrapper applies"`, the answer of an adapter that nearly applies; for
        `"refused"`, why the adapter that claims the layer cannot adapt it.
    - `options`: further arguments of the wrapper's constructor.
    - `role`: `"output head"` or `"router"`, judged by the name of a layer to wrap.
    - `advice`: for a layer with matrices to which no wrapper of the call applies: the installed
        adapters that apply, or the first `why_not` of an installed adapter, or how to declare its
        arrays. Only `plan_lora` and `net.plan` set it.
    """

    path: str
    layer: str
    status: PlanStatus
    wrapper: type[LoRAWrapper] | None = None
    distribution: str | None = dataclasses.field(default=None, compare=False)
    rank: int | None = None
    alpha: float | None = None
    reason: str | None = None
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    role: str | None = dataclasses.field(default=None, compare=False)
    advice: str | None = dataclasses.field(default=None, compare=False)
    # The dispatcher finds the node by its keys. `spec` is the index of the spec that claims the
    # layer, and `is_selected` whether the mask selects the layer. `alpha_is_default` means that the
    # call gave no alpha, so alpha follows a clamped rank.
    keys: KeyPath = dataclasses.field(default=(), repr=False, compare=False)
    spec: int | None = dataclasses.field(default=None, repr=False, compare=False)
    is_selected: bool = dataclasses.field(default=True, repr=False, compare=False)
    alpha_is_default: bool = dataclasses.field(default=False, repr=False, compare=False)

    @property
    def explanation(self) -> str:
        """The status as a phrase: "wrapped by DoRALinear", "no wrapper applies: its weight ..."."""
        if self.advice is not None:
            return self.advice
        if self.reason is not None:
            return f"{self.status}: {self.reason}"
        if self.wrapper is None or self.status not in ("wrapped", "already adapted"):
            return self.status
        role = "" if self.role is None else f" ({self.role})"
        return f"{self.status} by {self.wrapper.__name__}{role}"


@dataclasses.dataclass(frozen=True, repr=False)
class Plan(Printed[PlanRow]):
    """Every candidate of a model, and what a call would do with it.

    Prints as a table, with one line for rows that differ only in the indices of their paths
    (`layers/[0-11]/query`).

    - `problem`: the error that the call raises, if a target or spec selects nothing, or a layer is
        refused.
    - `left_out`: the layers whose matrices would have no adapter.
    - `notes`: possible mistakes in the call, such as a target `layers/1` that also selects
        `layers/10`.
    - `by_default`: whether only `wrapper=None`, `"auto"` or variants choose adapters.
    """

    rows: tuple[PlanRow, ...]
    problem: str | None = None
    left_out: LeftOut = dataclasses.field(default_factory=LeftOut)
    notes: tuple[str, ...] = ()
    by_default: bool = dataclasses.field(default=False, repr=False, compare=False)

    @property
    def wrapped(self) -> tuple[PlanRow, ...]:
        """The rows of the layers that would be wrapped."""
        return self.having("wrapped")

    @property
    def carriers(self) -> tuple[PlanRow, ...]:
        """The rows of the layers that the call selects, and that carry an adapter already."""
        adapted = self.having("already adapted")
        return tuple(row for row in adapted if row.spec is not None and row.is_selected)

    def having(self, *statuses: PlanStatus) -> tuple[PlanRow, ...]:
        """The rows with one of these statuses."""
        return tuple(row for row in self.rows if row.status in statuses)

    def __repr__(self) -> str:
        return f"Plan({self._title()})"

    def _title(self) -> str:
        layers = "layer" if len(self.rows) == 1 else "layers"
        return f"{len(self.wrapped)} of {len(self.rows)} candidate {layers} would be wrapped"

    def _table(self) -> Table:
        columns = [(name, "left") for name in ("path", "layer", "plan", "from")]
        rows = (
            (
                show_path(row.path),
                row.layer,
                row.explanation,
                row.distribution or "",
                *("" if value is None else f"{value:g}" for value in (row.rank, row.alpha)),
            )
            for row in self.rows
        )
        columns += [("rank", "right"), ("alpha", "right")]
        lines = [str(self.left_out)] if self.left_out.is_worth_a_line else []
        lines += [*filter(None, [self.problem]), *self.notes]
        return table(self._title(), columns, rows, "\n".join(lines), by_path=True)


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
    matches = ("wrapped", "already adapted", "mask does not select", "refused")
    if not missing and any(row.spec == index and row.status in matches for row in rows):
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
    if refused := plan.having(*NORMALISED.values()):
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
