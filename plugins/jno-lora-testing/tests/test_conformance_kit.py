"""The conformance kit: correct adapters pass, and failures, advice and reasons are reported."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest
from kit_cases import case_of
from tests.core.data_adapters import Informed, Tied
from tests.core.gated_adapters import Gated
from tests.core.good_adapter import Good
from wrong_adapters.precision import HalfPrecisionAdapter
from wrong_adapters.training import DoesNothing

from jno.lora import JnoLoraWarning, LoRAWrapper, WrapperError
from jno_lora_testing import (
    ConformanceError,
    check_wrapper,
    parametrize_with_checks,
    run_checks,
    standard_cases,
    wrapper_checks,
)
from jno_lora_testing._comparisons import relative_error
from jno_lora_testing._programs import shard


@parametrize_with_checks([case_of(it) for it in (Good, Gated, Informed, Tied)], strict=True)
def test_a_correct_adapter_passes(check):
    check()


class MyAdapter(LoRAWrapper):
    """An adapter in the form of the design's first example, and nothing else."""

    adapter_fields = ("delta",)
    base: eqx.Module
    delta: jax.Array
    rank: int = eqx.field(static=True)
    alpha: float = eqx.field(static=True)

    @classmethod
    def applies_to(cls, leaf) -> bool:
        return isinstance(leaf, eqx.nn.Linear) and leaf.weight.ndim == 2

    def __init__(self, base, rank, alpha, *, key):
        self.base, self.rank, self.alpha = base, rank, alpha
        self.delta = jnp.zeros_like(base.weight)

    def __call__(self, x):
        return self.base(x) + self.delta @ x * (self.alpha / self.rank)

    def merge(self):
        weight = self.base.weight + self.delta * (self.alpha / self.rank)
        return eqx.tree_at(lambda layer: layer.weight, self.base, weight)


def test_an_adapter_in_the_documented_form_passes_all_that_is_required():
    results = [result for case in standard_cases(MyAdapter) for result in run_checks(case)]
    failed = [result for result in results if result.error is not None]
    assert {(result.check, result.level) for result in failed} == {
        ("applies-to-needs-arrays", "advice"),
        ("adapter-dtype", "advice"),
        ("subclass-merge", "advice"),
    }


def test_advice_is_a_warning_unless_strict():
    case = case_of(HalfPrecisionAdapter, checks=("adapter-dtype", "jit"))
    with pytest.warns(JnoLoraWarning, match=r"Advice: \[adapter-dtype\] HalfPrecisionAdapter"):
        check_wrapper(case)
    with pytest.raises(
        ConformanceError, match=r"fails 1 of 2 checks.\n\nAdvice: \[adapter-dtype\]"
    ):
        check_wrapper(case, strict=True)

    def test_of(name, **settings):
        parameters = parametrize_with_checks([case], **settings).mark.args[1]
        ((check,),) = (p.values for p in parameters if p.id == f"HalfPrecisionAdapter:{name}")
        return check

    with pytest.warns(JnoLoraWarning, match=r"Advice: \[adapter-dtype\]"):
        test_of("adapter-dtype")()
    assert test_of("jit")() is None
    # An expected failure must be seen to fail.
    for settings in ({"strict": True}, {"expected_failures": {"adapter-dtype": "small"}}):
        with pytest.raises(ConformanceError):
            test_of("adapter-dtype", **settings)()


def test_expected_failures_are_strict_and_name_a_check_that_a_case_runs():
    (case,) = cases = [case_of(Good, checks=("law", "jit"))]
    parameters = parametrize_with_checks(cases, {"jit": "not yet"}).mark.args[1]
    ((mark,),) = (p.marks for p in parameters if p.id == f"{case}:jit")
    assert mark.kwargs["strict"] is True and mark.kwargs["reason"] == "not yet"
    for name in ("no-such-check", "vmap", "Good:vmap"):
        with pytest.raises(ValueError, match=f"{name}.*not a check that these cases run"):
            parametrize_with_checks(cases, {name: "?"})


class OneLayerOnly(Good):
    @classmethod
    def applies_to(cls, leaf):
        return Good.applies_to(leaf) and leaf.weight.ndim == 2


class Unmergeable(OneLayerOnly):
    mergeable = False

    def merge(self):
        raise WrapperError("a prefix is not a weight")


def test_a_check_that_has_nothing_to_see_is_not_applicable_and_says_why():
    assert LoRAWrapper.mergeable is True
    case = case_of(Unmergeable, parameters=None)
    assert case.mergeable is False and case_of(Good).mergeable is True
    results = run_checks(case)
    assert [result.error for result in results if result.error] == []
    found = {r.check: r.not_applicable for r in results if r.not_applicable is not None}
    refused = "the adapter is refused there: "
    # A bank takes the zoo's kinds of layer, and a conditional asks what moves without a merge.
    for name, why in {"bank": "A slot holds", "conditional": "These adapters cannot"}.items():
        assert (found.pop(name) or "").startswith(refused + why)
    of_merged = ("merge-equals-call", "merge-gradients", "low-rank-form", "low-rank-scale")
    derivatives = ("input-derivatives", "input-jet", "jet-rules", "residual-gradients")
    assert found == {
        **dict.fromkeys((*of_merged, "subclass-merge"), "the adapter cannot be merged"),
        **dict.fromkeys(derivatives, "the adapter cannot be merged"),
        "matrix": "the adapter says no `matrix`",
        "subclass": "the adapter does not claim subclasses",
        "partition-specs": "the adapter gives no `partition_specs`",
        "parameter-count": "the case has no `parameters`",
        "law": "the case has no `law`",
        "symmetries": "the case names no `symmetries`",
        "stacked-layers": "the adapter does not claim stacked layers",
        "poor-statistics": "the adapter needs no statistics",
        "calibration": "the adapter needs no statistics",
        "shared-arrays": "the adapter shares no array",
        "penalty": "the adapter defines no `penalty`",
        "rank-gate": "the adapter declares no `rank_gate`",
    }
    adapter = case.make_trained()
    assert adapter.weight is adapter.base.weight  # read as the layer's own
    told = dataclasses.replace(case, mergeable=True)
    with pytest.raises(ConformanceError, match="a prefix is not a weight"):
        wrapper_checks(told)["merge-equals-call"]()


def test_each_array_is_cut_along_an_axis_that_the_devices_divide():
    _, shardings = shard(eqx.nn.Linear(8, 6, key=jax.random.key(0)))
    assert [tuple(sharding.spec) for sharding in shardings] == [(None, "devices"), (None,)]
    assert shardings[0].mesh.size == 8
    case = case_of(Good, base=lambda key: eqx.nn.Identity())
    assert "no array that could be cut" in wrapper_checks(case)["sharding"]()


def test_check_wrapper_names_every_failure():
    case = case_of(DoesNothing, checks=("adapter-acts", "gradients", "law", "jit"))
    with pytest.raises(ConformanceError, match="DoesNothing fails 2 of 4 checks") as error:
        check_wrapper(case)
    assert "[adapter-acts]" in str(error.value)
    assert str(error.value).endswith("These may fail because of it: gradients.")


def test_the_relative_error_sees_shapes_nan_and_imaginary_parts():
    for a, b in [
        (jnp.ones(3), jnp.ones((1, 3))),
        ([jnp.ones(3)], [jnp.ones(3), jnp.ones(3)]),
        (jnp.full(2, jnp.nan), jnp.ones(2)),
    ]:
        assert relative_error(a, b) == float("inf")
    assert relative_error(jnp.ones((0, 3)), jnp.ones((0, 3))) == 0.0
    assert relative_error(jnp.array([1 + 0j]), jnp.array([1 + 5j])) > 0.9


def test_layers_of_which_a_class_cannot_say_whether_it_is_for_them_are_no_cases():
    class Careless(Good):
        @classmethod
        def applies_to(cls, leaf):
            return leaf.weight.shape == (4, 6)  # not every layer has a weight

    (case,) = standard_cases(Careless)
    assert str(case) == "Careless-Linear"
    (result,) = run_checks(case, ["applies-to-total"])
    assert result.error is not None


class CrashesOnCodes(Good):
    """Its constructor fails for a weight that is no array, as an author's mistake would."""

    def __init__(self, base, rank, alpha, *, key):
        if not isinstance(base.weight, jax.Array):
            raise TypeError("no array")
        super().__init__(base, rank, alpha, key=key)


def test_a_crash_is_no_refusal():
    (result,) = run_checks(case_of(CrashesOnCodes), ("quantized-base",))
    assert result.not_applicable is None and "no array" in str(result.error)
