"""The ratios in the report of the conditional study are over the same cells and seeds."""

from dataclasses import replace

import pytest
from studies.conditional._methods import HEADLINE
from studies.conditional._report import _compared, _goals
from studies.conditional._results import BASELINES, Cell, Study
from studies.conditional._runs import Plan
from studies.conditional._tasks import TASKS

VARIANT = "conditional lora 1, cp 4, without log"


def test_the_goals_adapter_counts_where_the_variant_has_results():
    tasks = (TASKS[0], TASKS[3])

    def cell(errors, task):
        return Cell({s: (e,) * len(task.values) for s, e in errors.items()}, 1.0, 0.02, 0)

    cells = {}
    for task, lowest in zip(tasks, (1.0, 4.0), strict=True):
        for name in BASELINES:
            cells[task.name, name, 16, 0.0] = cell({0: 2.0 + lowest, 1: 9.0}, task)
        cells[task.name, BASELINES[2], 16, 0.0] = cell({0: lowest, 1: 0.1}, task)
        cells[task.name, HEADLINE, 16, 0.0] = cell({0: 2 * lowest, 1: 5.0}, task)
    cells[tasks[0].name, VARIANT, 16, 0.0] = cell({0: 3.0}, tasks[0])
    untouched = {task.name: [(0.0,) * len(task.values)] for task in tasks}
    study = Study(replace(Plan(), tasks=tasks), cells, untouched, {})
    assert _compared(study, VARIANT, "inside") == pytest.approx((3, 3.0, 2.0))
    assert _compared(study, VARIANT, "outside").cells == 2
    assert _compared(study, HEADLINE, "inside").cells == 6
    assert "| 3 + 2 | 3.00 (2.00) | 3.00 (2.00) |" in _goals(study)
