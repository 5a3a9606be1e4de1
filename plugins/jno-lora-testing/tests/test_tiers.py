"""The tiers of adapters: which checks they need, in the table, in JSON, and as a badge."""

import collections
import json
from xml.etree import ElementTree

import pytest
from kit_cases import run
from tests.core.test_commands import GOOD

from jno_lora_testing import ADVICE, CHECKS, TIERS, CheckResult, ConformanceError, tier_of
from jno_lora_testing._check import overstated

ERROR = ConformanceError("wrong")


def results(*failed, without=()):
    """Results of every check, of which these failed, and those are not there."""
    return [
        CheckResult("case", name, ERROR if name in failed else None, "no index")
        for name in CHECKS
        if name not in without
    ]


def test_every_check_belongs_to_one_tier():
    counts = collections.Counter(name for names in TIERS.values() for name in names)
    assert counts == dict.fromkeys(CHECKS, 1)
    assert list(TIERS) == ["works", "solid", "complete"]
    # An adapter that works has no error without a word.
    assert ADVICE.isdisjoint(TIERS["works"])


@pytest.mark.parametrize(
    ("given", "tier"),
    [
        (results(), "complete"),
        (results("input-jet"), "solid"),
        (results("stacked-layers"), "works"),  # advice that users of a solid adapter rely on
        (results("merge-equals-call"), None),
        (results(without=("calibration",)), "solid"),
        (
            [*results(), CheckResult("case", "bank", None, "jno-lora-bank is not installed")],
            "solid",
        ),
        ([*results(), *results("sharding")], "works"),  # the second case fails
        ([], None),
    ],
)
def test_a_tier_needs_its_checks_and_those_of_lower_tiers_in_all_cases(given, tier):
    assert tier_of(given) == tier


def test_a_keyword_above_the_tier_is_told():
    assert "jno-lora-complete" in overstated("jno-lora-attention", "solid")
    assert overstated("jno-lora-attention", "complete") == ""
    assert overstated("jno-lora-zoo", None) == ""


def test_check_prints_json_and_writes_badges(site, tmp_path):
    module = site.install("whole", GOOD)
    asked = ("check", f"{module}:Shift", "--only", "contract", "--only", "law", "--json")
    facts = json.loads(run(*asked, "--badge", str(tmp_path / "badge.svg")))
    assert {"jno_lora", "tier", "missing_for_tier", "unchecked", "results"} <= facts.keys()
    assert facts["tier"] is None and "did not run" in facts["missing_for_tier"]["works"]
    contract, law = (r for r in facts["results"] if r["case"] == "Shift-Linear")
    assert contract == {
        "case": "Shift-Linear",
        "check": "contract",
        "tier": "works",
        "level": "required",
        "outcome": "passed",
        "message": "",
        "cause": None,
    }
    assert law["outcome"] == "not applicable" and "law" in law["message"]
    badge = ElementTree.parse(tmp_path / "badge.svg").getroot()
    assert "jno-lora: no tier" in badge.attrib.values()
    run(*asked, "--badge", str(tmp_path / "badge.json"))
    endpoint = json.loads((tmp_path / "badge.json").read_text())
    assert (endpoint["schemaVersion"], endpoint["message"]) == (1, "no tier")
