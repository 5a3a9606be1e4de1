"""The kit's messages: the author's own line, and one message for failures that are the same."""

import importlib
import json
import re
import sys

import pytest
from kit_cases import case_of, run
from tests.core.good_adapter import Good
from wrong_adapters.maths import CallForgetsTheScale

from jno.lora import SelectionError
from jno_lora_testing import (
    CHECKS,
    ConformanceError,
    _check,
    check_wrapper,
    messages,
    run_checks,
    wrapper_checks,
)
from jno_lora_testing._causes import CAUSES, CONSEQUENCES, presupposed

ADAPTER = """
from tests.core.good_adapter import Good
from .helpers.arithmetic import apply

class Adapter(Good):
    def __call__(self, x):
        return apply(self, x)

    def penalty(self):
        return self.another_mistake
"""
HELPER = """
import jax.numpy as jnp

def apply(adapter, x):
    return adapter.base(x) + jnp.matmul(
        adapter.lora_A.T, x)
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A third party's package of two modules; the mistake is in the second one."""
    folder = tmp_path / "someones_adapters"
    (folder / "helpers").mkdir(parents=True)
    (folder / "__init__.py").write_text(ADAPTER)
    (folder / "helpers" / "__init__.py").write_text("")
    (folder / "helpers" / "arithmetic.py").write_text(HELPER)
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module("someones_adapters")
    for name in [name for name in sys.modules if name.startswith("someones_adapters")]:
        del sys.modules[name]


@pytest.mark.slow
def test_the_line_is_the_author_s_own_and_checks_that_stop_there_share_a_message(package):
    results = run_checks(case_of(package.Adapter))
    failed = [r for r in results if r.error is not None and r.level == "required"]
    stopped = {r.check: f"{r.error}" for r in failed if r.error and r.error.exception}
    # Also under `jit`, `vmap` and a mesh.
    assert {"identity-at-init", "gradients", "jit", "vmap"} < {*stopped}
    texts = messages(failed)
    (text,) = (text for text in texts if "checks stopped at an exception" in text)
    names = text.removeprefix("[").partition("] Adapter: ")[0].split(", ")
    assert f"] Adapter: {len(names)} checks stopped at an exception, TypeError: " in text
    assert "(raised in apply, " in text
    assert "helpers/arithmetic.py:5: return adapter.base(x) + jnp.matmul(" in text
    following = text.partition("may fail because of it: ")[2].rstrip(".").split(", ")
    assert {*names} < {*stopped} and {"gradients", "jit", "vmap"} < {*following}
    (penalty,) = (other for other in texts if other != text)
    assert penalty.startswith("[penalty]")
    # One message for what is required, and one for advice; and one for all cases.
    text = run("check", "someones_adapters:Adapter", "--only", "j*", "--only", "s*", code=1)
    lines = [line for line in text.splitlines() if "stopped at an exception, TypeError: " in line]
    assert [line.startswith("Advice: ") for line in lines] == [False, True]
    cases = [
        case_of(package.Adapter, name=name, rank=rank)
        for name, rank in (("narrow", 1), ("wide", 3))
    ]
    (text,) = messages(r for case in cases for r in run_checks(case, ["jit", "identity-at-init"]))
    assert text.startswith("[identity-at-init, jit] narrow: 2 checks stopped at an exception, Type")
    assert text.endswith("\nThe same in wide.")


class RaisesInInit(Good):
    def __init__(self, base, rank, alpha, *, key):
        raise RuntimeError("out of order")


@pytest.mark.slow
def test_an_error_behind_another_one_is_the_author_s_too():
    with pytest.raises(ConformanceError) as error:  # by `apply_lora`, with an error of its own
        wrapper_checks(case_of(RaisesInInit))["sharding"]()
    assert f"(raised in __init__, {__file__}:" in str(error.value)


@pytest.mark.slow
def test_the_consequences_of_a_failure_are_named_in_the_message_of_their_cause():
    case = case_of(CallForgetsTheScale, parameters=21)
    results = run_checks(case)
    failed = {result.check for result in results if result.error}
    assert len(failed) > 10
    first, second = messages(results)
    assert first.startswith("[merge-equals-call]") and second.startswith("[parameter-count]")
    named = first.partition("These may fail because of it: ")[2].rstrip(".").split(", ")
    assert {*named} == failed - {"merge-equals-call", "parameter-count"}
    # Not the remedies of the consequences, required and advice.
    assert {"ranks", "special-inputs", "stacked-layers"} < {*named}
    assert "clamp a rank" not in first and "stack_ndim" not in first
    # The table, the tier and the JSON say so, too.
    table = str(_check.as_table(results, ""))
    assert "merge-equals-call" in table and "that may follow" in table and "ranks" not in table
    assert "(not works: parameter-count, merge-equals-call failed;" in table
    causes = {r["check"]: r["cause"] for r in json.loads(_check.as_json(results, ""))["results"]}
    assert causes["ranks"] == "merge-equals-call" and causes["merge-equals-call"] is None
    # A check whose cause passes is a cause itself, and advice comes last.
    alone = run_checks(case, ["input-jet", "stacked-layers", "parameter-count"])
    starts = [text.partition("]")[0] for text in messages(alone)]
    assert starts == ["[parameter-count", "[input-jet", "Advice: [stacked-layers"]


@pytest.mark.slow
def test_every_check_comes_after_the_checks_that_it_presupposes():
    consequences = {name for names in CONSEQUENCES.values() for name in names}
    assert consequences | {*CONSEQUENCES} <= {*CHECKS}
    assert all("contract" in presupposed(check) for check in {*CHECKS} - {"contract"})
    # A cause presupposes less, so its message can be found, and `--fast` runs it before.
    for check in CHECKS:
        assert all(presupposed(cause) < presupposed(check) for cause in presupposed(check))


@pytest.mark.slow
def test_fast_runs_the_likely_causes_on_one_case_until_one_fails():
    wrong = f"{CallForgetsTheScale.__module__}:CallForgetsTheScale"
    text = run("check", wrong, "--fast", code=1)
    assert re.match(r"1 of \d+ checks fails\n", text) and text.count("CallForgetsTheScale-") == 2
    assert "\n[merge-equals-call] CallForgetsTheScale-Linear: " in text and "Tier" not in text
    found = json.loads(run("check", wrong, "--fast", "--json", code=1))
    assert found["tier"] is None and "of 3 cases" in found["unchecked"]
    ran = [result["check"] for result in found["results"]]
    assert {*ran} < {*CAUSES} and ran[-1] == "merge-equals-call"
    whole = run_checks(case_of(Good), CAUSES, until_failure=True)
    assert {result.check for result in whole} == {*CAUSES}
    assert run("check", wrong, "--fast", "--only", "law", "--only", "contract").startswith("0 of 1")


@pytest.mark.slow
def test_single_checks_can_be_run_by_their_ids_and_by_patterns():
    case = case_of(Good, checks=("merge-*", "jit", "vmap"))
    assert [r.check for r in run_checks(case, ["jit", "merge-*"])] == [
        name for name in CHECKS if name == "jit" or name.startswith("merge-")
    ]
    assert {*wrapper_checks(case)} == {"vmap", *(r.check for r in run_checks(case))}
    for asked in (lambda: run_checks(case, ["jits"]), lambda: case_of(Good, checks=("jits",))):
        with pytest.raises(SelectionError, match=r"'jits' is not a check\. Checks: contr"):
            check_wrapper(asked())
    with pytest.raises(SelectionError, match=r"No check ran: .* Good match none of law"):
        _check.run([case], ("law",), None)


@pytest.mark.slow
def test_the_command_runs_cases_of_layers_of_one_s_own():
    for name, count in (("CASES", 2), ("cases", 2), ("CASE", 1)):
        text = run("check", f"kit_cases:{name}", "--only", "contract", "--only", "identity-at-init")
        lines = [line.split()[:2] for line in text.splitlines() if "Doubling-" in line]
        assert lines == [["Doubling-2", "2/2"], ["Doubling-4", "2/2"]][:count]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ("Picky --only key-forms --rank 5", 0, "0 of 1 checks fail"),
        ("Picky --only key-forms", 1, "four at least"),
        ("Picky --layer Linears", 1, "['Linears'] are not layers that this command knows. Layers:"),
        ("Picky --layer Conv1d", 1, "they claim no Conv1d: Picky."),
        ("Picky --only jits", 1, "'jits' is not a check. Checks: contract, "),
        ("UNNAMED", 1, "has several cases called DoublingUpdate: give each case a `name`"),
        ("Doubling", 1, "a function without arguments that returns such a list"),
        ("CASES --layer Linear", 2, "cases have layers already"),
    ],
)
def test_the_command_runs_what_its_options_choose_and_says_what_it_cannot_run(
    arguments, code, said
):
    name, *options = arguments.split()
    assert said in " ".join(run("check", f"kit_cases:{name}", *options, code=code).split())


@pytest.mark.slow
def test_a_number_of_parameters_holds_for_the_rank_of_its_case():
    (skipped,) = _check.run([case_of(Good)], ("parameter-count",), 3)
    assert skipped.error is None and skipped.not_applicable
    for rank in (2, None):  # 2 is the rank of the case
        (counted,) = _check.run([case_of(Good)], ("parameter-count",), rank)
        assert counted.error is None and not counted.not_applicable
