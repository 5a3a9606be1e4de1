"""The study of extraction: a short form, which resumes, and what its report tells."""

from dataclasses import replace

import pytest
from studies import _families
from studies.extract import _report
from studies.extract._runs import Plan, run

from .conftest import killed, once
from .test_operators import EFFORT, PROBLEM

KEY = ("problem", "way", "samples", "seed", "rank", "leftovers")
PLAN = Plan([PROBLEM], (1, 16), replace(EFFORT, samples=(8,), seeds=1, rates=(0.1, 1.0)))


def test_the_study_runs_resumes_and_is_reported(tmp_path, monkeypatch):
    monkeypatch.setattr(_families, "CACHE", tmp_path / "cache")
    file = tmp_path / "results.jsonl"
    run(file, PLAN, "lora")
    assert len(once(file, KEY)) == 2
    killed(file)  # while it wrote the record of the second rank
    run(file, PLAN)
    records = once(file, KEY)
    assert len(records) == 2 + 1 + 2 * 2
    low, full = _report.cells(records, PLAN)
    # Rank 16 of a matrix of 16 x 16 is the fine-tune, except for the bias.
    assert full.energy == 1 and full.with_leftovers == pytest.approx(full.full, rel=1e-3)
    assert (low.trained, full.trained, full.total) == (32, 512, 272)
    assert low.energy < 1 and full.full < full.untouched
    monkeypatch.setattr(_report, "PLAN", PLAN)
    assert "1 of 1 cells" in _report.verdicts([low, full])
    assert f"{low.kept:.0%} of the gain" in " ".join(_report.denied([low, full]).split())
    assert len(_report.table([low, full]).splitlines()) == 4
