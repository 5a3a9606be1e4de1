"""The kit's messages: the author's own line, and one message for failures that are the same."""

import dataclasses
import importlib
import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jno.lora import SelectionError
from jno.lora.testing import (
    CHECKS,
    ConformanceError,
    WrapperCase,
    check_wrapper,
    messages,
    run_checks,
    wrapper_checks,
)
from jno_lora_testing import _check

from .asking import run
from .broken_adapters import Good, HalfPrecisionAdapter, case_of

ADAPTER = """
import equinox as eqx
import jax
import jax.numpy as jnp
from jno.lora import LoRAWrapper
from .helpers.arithmetic import apply

class Adapter(LoRAWrapper):
    adapter_fields = ("delta",)
    base: eqx.nn.Linear
    delta: jax.Array

    @classmethod
    def applies_to(cls, leaf):
        exact = type(leaf) is eqx.nn.Linear and eqx.is_inexact_array(leaf.weight)
        return exact and leaf.weight.ndim == 2

    def __init__(self, base, *, key):
        self.base, self.delta = base, jnp.zeros(base.weight.shape)

    def __call__(self, x):
        return apply(self, x)

    def merge(self):
        return eqx.tree_at(lambda m: m.weight, self.base, self.base.weight + self.delta)
"""
HELPER = """
import jax.numpy as jnp

def apply(adapter, x):
    return adapter.base(x) + jnp.matmul(
        adapter.delta.T, x)
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


@pytest.mark.parametrize("check", ["identity-at-init", "gradients", "jit", "vmap", "sharding"])
def test_the_line_is_the_author_s_own_in_whichever_module_and_under_jit(package, check):
    checks = wrapper_checks(case_of(package.Adapter))
    with pytest.raises(ConformanceError, match="the check stopped at an exception, Type") as error:
        checks[check]()
    assert "(raised in apply, " in str(error.value)
    assert "helpers/arithmetic.py:5: return adapter.base(x) + jnp.matmul(" in str(error.value)


class RaisesInInit(Good):
    def __init__(self, base, rank, alpha, *, key):
        raise RuntimeError("out of order")


def test_an_error_behind_another_one_is_the_author_s_too():
    with pytest.raises(ConformanceError) as error:  # by `apply_lora`, with an error of its own
        wrapper_checks(case_of(RaisesInInit))["sharding"]()
    assert f"(raised in __init__, {__file__}:" in str(error.value)


def test_checks_that_stop_at_one_line_for_one_reason_share_a_message(package):
    results = run_checks(case_of(package.Adapter))
    failed = [r for r in results if r.error is not None and r.level == "required"]
    stopped = [r.check for r in failed if r.error and r.error.exception]
    assert len(stopped) > 10
    texts = messages(failed)
    several = [text for text in texts if "checks stopped at an exception" in text]
    (text,) = several
    names = text.removeprefix("[").partition("] Adapter: ")[0].split(", ")
    assert f"] Adapter: {len(names)} checks stopped at an exception, TypeError: " in text
    assert set(names) < set(stopped) and len(names) > 10
    assert len(texts) == len(failed) - len(names) + 1
    with pytest.raises(ConformanceError, match=rf"fails \d+ of {len(CHECKS)} checks") as error:
        check_wrapper(case_of(package.Adapter))
    assert str(error.value).count(text) == 1


def test_the_command_prints_one_message_for_all(package):
    text = run("check", "someones_adapters:Adapter", code=1)
    assert text.count("identity-at-init, ") >= 1
    stopped = [
        line for line in text.splitlines() if "checks stopped at an exception, TypeError: " in line
    ]
    # One for what is required, one for advice.
    assert [line.startswith("Advice: ") for line in stopped] == [False, True]


def test_one_cause_has_one_message_for_all_cases(package):
    cases = [
        dataclasses.replace(case_of(package.Adapter), name=name, rank=rank)
        for name, rank in (("narrow", 1), ("wide", 3))
    ]
    (text,) = messages(r for case in cases for r in run_checks(case, ["jit", "identity-at-init"]))
    assert text.startswith("[identity-at-init, jit] narrow: 2 checks stopped at an exception, Type")
    assert text.endswith("\nThe same in wide.")


class StartsLarge(Good):
    def __init__(self, base, rank, alpha, *, key):
        Good.__init__(self, base, rank, alpha, key=key)
        self.lora_B = self.lora_B + alpha


def test_one_problem_with_other_numbers_has_one_message_for_all_cases():
    cases = [
        dataclasses.replace(case_of(StartsLarge), name=f"alpha {alpha}", alpha=alpha)
        for alpha in (1.0, 2.0, 5.0)
    ]
    results = [r for case in cases for r in run_checks(case, ["identity-at-init"])]
    problems = {r.error.problem for r in results}
    assert len(problems) == 3
    (text,) = messages(results)
    assert text == f"{results[0].error}\nThe same in alpha 2.0, alpha 5.0."


def test_other_failures_keep_a_message_each():
    failed = [r for r in run_checks(case_of(HalfPrecisionAdapter)) if r.error is not None]
    (text,) = messages(failed)
    assert text == f"{failed[0].error}"


def test_single_checks_can_be_run_by_their_ids_and_by_patterns():
    case = case_of(Good)
    assert [r.check for r in run_checks(case, ["jit", "merge-*"])] == [
        name for name in CHECKS if name == "jit" or name.startswith("merge-")
    ]
    with pytest.raises(SelectionError, match=r"'no-such-check' is not a check\. Checks: contr"):
        run_checks(case, ["no-such-check"])


def rows(text):
    return [line.split()[:2] for line in text.splitlines() if "-Linear" in line or "-Conv" in line]


def test_the_command_runs_chosen_checks_on_chosen_layers_at_a_chosen_rank(package):
    own = "someones_adapters:Adapter"
    text = run("check", own, "--only", "contract", "--only", "applies-*", "--layer", "Linear")
    assert rows(text) == [["Adapter-Linear", "4/4"]]  # further cases have no such checks
    assert run("check", f"{__name__}:Picky", "--only", "key-forms", "--rank", "5", code=0)
    assert "only even ranks" in run("check", f"{__name__}:Picky", "--only", "key-forms", code=1)
    assert "Linears are not" not in text
    for arguments, code, said in [
        (
            ("--layer", "Linears"),
            1,
            "['Linears'] are not layers that this command knows. Layers: Lin",
        ),
        (("--layer", "Conv1d"), 1, "they claim no Conv1d: Adapter."),
        (("--only", "jits"), 1, "'jits' is not a check. Checks: contract, "),
        (("--rank", "0"), 2, "0 is not in the range"),
    ]:
        assert said in " ".join(run("check", own, *arguments, code=code).split())


def test_a_number_of_parameters_holds_for_the_rank_of_its_case():
    (skipped,) = _check.run([case_of(Good)], ("parameter-count",), 3)
    assert skipped.error is None and skipped.not_applicable
    for rank in (2, None):  # 2 is the rank of the case
        (counted,) = _check.run([case_of(Good)], ("parameter-count",), rank)
        assert counted.error is None and not counted.not_applicable


class Picky(Good):
    def __init__(self, base, rank, alpha, *, key):
        if rank < 4:
            raise ValueError("only even ranks")
        Good.__init__(self, base, rank, alpha, key=key)


class Doubling(eqx.Module):
    """A layer of an author's own."""

    weight: jax.Array

    def __call__(self, x):
        return 2 * (self.weight @ x)


class DoublingUpdate(Good):
    @classmethod
    def applies_to(cls, leaf):
        is_array = type(leaf) is Doubling and eqx.is_inexact_array(leaf.weight)
        return is_array and leaf.weight.ndim == 2

    def __call__(self, x):
        return self.merge()(x)


def doubling(outputs):
    return WrapperCase(
        DoublingUpdate,
        base=lambda key: Doubling(jax.random.normal(key, (outputs, 3))),
        inputs=lambda key: (jax.random.normal(key, (3,)),),
        name=f"Doubling-{outputs}",
    )


CASES = [doubling(2), doubling(4)]
CASE = CASES[0]
UNNAMED = [dataclasses.replace(case, name="") for case in CASES]


def cases():
    return CASES


def no_cases():
    return ["Doubling"]


@pytest.mark.parametrize(("name", "count"), [("CASES", 2), ("cases", 2), ("CASE", 1)])
def test_the_command_runs_cases_of_layers_of_one_s_own(name, count):
    text = run("check", f"{__name__}:{name}", "--only", "contract", "--only", "identity-at-init")
    lines = [line.split()[:2] for line in text.splitlines() if "Doubling-" in line]
    assert lines == [["Doubling-2", "2/2"], ["Doubling-4", "2/2"]][:count]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("UNNAMED",), 1, "has several cases called DoublingUpdate: give each case a `name`"),
        (("no_cases",), 1, "gives ['Doubling']. It must be a subclass of jno.lora.LoRA"),
        (("Doubling",), 1, "a function without arguments that returns such a list"),
        (("CASES", "--layer", "Linear"), 2, "cases have layers already"),
    ],
)
def test_the_command_says_what_cases_are(arguments, code, said):
    name, *options = arguments
    assert said in " ".join(run("check", f"{__name__}:{name}", *options, code=code).split())


class KeepsAnArrayAsStatic(Good):
    signs: np.ndarray = eqx.field(static=True)

    def __init__(self, base, rank, alpha, *, key):
        Good.__init__(self, base, rank, alpha, key=key)
        self.signs = np.ones(base.weight.shape)


@pytest.mark.filterwarnings("ignore:A JAX array is being set as static")
def test_a_static_field_that_holds_an_array_is_named():
    with pytest.raises(ConformanceError, match="The static field 'signs' holds an array") as error:
        wrapper_checks(case_of(KeepsAnArrayAsStatic))["trainable-fields"]()
    assert "`signs: jax.Array`" in str(error.value)


class RaisesWhenAsked(Good):
    @classmethod
    def applies_to(cls, leaf):
        return leaf.weight.ndim == 2


def test_a_claim_that_raises_is_shown_with_its_line():
    with pytest.raises(ConformanceError, match="`applies_to` raises for None: Attr") as error:
        wrapper_checks(case_of(RaisesWhenAsked))["applies-to-total"]()
    assert f"(raised in applies_to, {__file__}:" in str(error.value)


class ForgetsTheScale(Good):
    def __call__(self, x):
        return self.base(x) + self.lora_B @ (self.lora_A @ x)


def test_a_failure_that_explains_others_comes_first():
    wanted = ["input-jet", "merge-equals-call"]
    first, second = messages(run_checks(case_of(ForgetsTheScale), wanted))
    assert first.startswith("[merge-equals-call]")
    assert second.startswith("[input-jet]")


def test_a_promotion_that_the_kit_forbids_is_explained():
    with pytest.raises(ConformanceError, match="checks forbid implicit promotion"):
        wrapper_checks(case_of(ForgetsTheScale))["output-dtype"]()


class InFloat32Only(eqx.Module):
    """A layer that refuses half precision, as an FFT does."""

    weight: jax.Array

    def __call__(self, x):
        modes = jnp.fft.rfft(x)
        return jnp.fft.irfft(modes * self.weight.astype(modes.dtype), n=len(x))


class Gain(Good):
    @classmethod
    def applies_to(cls, leaf):
        return type(leaf) is InFloat32Only and eqx.is_inexact_array(leaf.weight)

    def __init__(self, base, rank, alpha, *, key):
        self.base, self.rank, self.alpha = base, rank, alpha
        self.lora_A = self.lora_B = jnp.zeros(base.weight.shape, base.weight.dtype)

    def __call__(self, x):
        return self.merge()(x)

    def merge(self):
        return eqx.tree_at(lambda m: m.weight, self.base, self.base.weight + self.lora_A)


def test_half_precision_is_not_asked_of_an_adapter_whose_layer_has_none():
    case = WrapperCase(
        Gain,
        base=lambda key: InFloat32Only(jnp.ones(4)),
        inputs=lambda key: (jax.random.normal(key, (6,)),),
    )
    checks = wrapper_checks(case)
    assert checks["identity-in-half-precision"]() == (
        "the layer itself cannot compute in half precision"
    )
    assert checks["output-dtype"]() is None
