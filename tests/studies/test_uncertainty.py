"""The study of error bars, in a short form."""

from dataclasses import replace

import pytest
from studies._families import QUICK
from studies.uncertainty import _report
from studies.uncertainty._runs import KEY, RESULTS, Plan, run
from studies.uncertainty._ways import ADAPTERS, PRETRAINED

from .conftest import killed, once


@pytest.fixture
def quick():
    return Plan(replace(QUICK, samples=(8,)))


def test_the_study_runs_goes_on_and_is_reported(tmp_path, quick):
    file = tmp_path / "results.jsonl"
    run(file, quick, f"burgers.*/{ADAPTERS}")
    records = once(file, KEY)
    assert [record["problem"] for record in records] == ["burgers", "burgers-values"]
    assert all(0 <= record["coverage"] <= 1 for record in records)
    killed(file)
    run(file, quick, f"burgers.*/{ADAPTERS}")
    again = [{**record, "seconds": 0} for record in once(file, KEY)]
    assert again == [{**record, "seconds": 0} for record in records]
    (tmp_path / "uncertainty.md").write_text((_report.DOCS / "uncertainty.md").read_text())
    page = _report.write_page(file, tmp_path).read_text()
    assert f"| burgers | {ADAPTERS} | 8 |" in page


def test_verdicts_are_denials_with_their_numbers():
    def record(way, coverage, crps):
        names = dict.fromkeys(KEY, 0) | {"problem": "burgers", "way": way, "samples": 8}
        scored = {"coverage": coverage, "crps": crps, "constant_crps": 2.0, "held_out_crps": 1.0}
        return names | scored

    records = [record(ADAPTERS, 0.91, 1.2), record(PRETRAINED, 0.9, 1.0)]
    worse = {**records[0], "rate": 1, "coverage": 0.0, "held_out_crps": 2.0}
    lines = _report.verdict_lines(_report.at_best_rates([worse, *records]))
    assert lines[0].endswith("met (0.91)")
    assert "not run yet" in lines[1]
    assert "**denied** in 1 of 1 cells (1.2)" in lines[2]
    assert lines[3].endswith("met (0.6)")


def test_the_page_shows_the_stored_results(tmp_path):
    page = _report.DOCS / "uncertainty.md"
    (tmp_path / "uncertainty.md").write_text(page.read_text())
    # If not: `python -m studies.uncertainty --report`.
    assert _report.write_page(RESULTS, tmp_path).read_text() == page.read_text()
