"""Plans: what a call would do with each layer."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from .._contract.wrapper import LoRAWrapper
from .._left_out import LeftOut
from .._paths import KeyPath, show_path
from .._showing.tables import Printed, Table, table
from .._tree import NormStatus
from .specs import Rule

PlanStatus = Literal[
    "wrapped",
    "target does not match",
    "mask does not select",
    "no wrapper applies",
    "already adapted",
    "refused",
    NormStatus,
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


@dataclasses.dataclass(frozen=True)
class PlannedRow:
    """A row, and what the planner knows of its layer.

    - `keys`: the key path of the layer.
    - `rule`: the rule that claims the layer; `None` if nobody does.
    - `is_selected`: whether the mask selects the layer.
    """

    row: PlanRow
    keys: KeyPath
    rule: Rule | None
    is_selected: bool


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
    by_default: bool = dataclasses.field(default=False, compare=False)
    _planned: tuple[PlannedRow, ...] = dataclasses.field(default=(), compare=False)

    @property
    def wrapped(self) -> tuple[PlanRow, ...]:
        """The rows of the layers that would be wrapped."""
        return self.having("wrapped")

    @property
    def carriers(self) -> tuple[PlanRow, ...]:
        """The rows of the layers that the call selects, and that carry an adapter already."""
        adapted = planned_rows(self, "already adapted")
        return tuple(x.row for x in adapted if x.rule is not None and x.is_selected)

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


def planned_rows(plan: Plan, *statuses: PlanStatus) -> list[PlannedRow]:
    """The rows of `plan` with one of these statuses, without advice."""
    return [planned for planned in plan._planned if planned.row.status in statuses]
