"""The commands of the studies refuse a pattern that selects nothing; pages show the results."""

import importlib

import pytest

STUDIES = (
    *("conditional", "equivariant", "extract", "large", "operators", "physics", "sequence"),
    "uncertainty",
)


@pytest.mark.parametrize("study", STUDIES)
def test_a_pattern_that_selects_nothing_is_refused(study):
    main = importlib.import_module(f"studies.{study}.__main__").main
    with pytest.raises(SystemExit, match="selects no"):
        main(["--quick", "--only", "nothing"])


@pytest.mark.parametrize(
    ("study", "name"),
    [("equivariant", "equivariant-study"), ("extract", "combining"), ("physics",) * 2],
)
def test_the_page_shows_the_stored_results(study, name, tmp_path):
    report, runs = (importlib.import_module(f"studies.{study}.{m}") for m in ("_report", "_runs"))
    page = (report.DOCS / f"{name}.md").read_text()
    (tmp_path / f"{name}.md").write_text(page)
    # If not: `python -m studies.STUDY --report`.
    assert report.write_page(runs.RESULTS, tmp_path).read_text() == page
