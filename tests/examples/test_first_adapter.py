"""The example of an adapter of one's own in the README: it passes every check of the kit."""

import pathlib

from jno.lora.testing import messages, run_checks, standard_cases

README = (pathlib.Path(__file__).parents[2] / "README.md").read_text()


def test_the_adapter_passes_all_checks_and_the_readme_says_how_many(example):
    assert example.main().summary().rows[0].wrapper is example.RowGain
    results = [r for case in standard_cases(example.RowGain) for r in run_checks(case)]
    assert messages(results) == []
    # On one device, where a reader runs it, there is nothing to shard.
    ran = [r for r in results if r.not_applicable is None and r.check != "sharding"]
    assert f"0 of {len(ran)} checks fail" in README
