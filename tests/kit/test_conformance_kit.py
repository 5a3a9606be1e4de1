"""The conformance kit bites: for every check there is a broken adapter that it catches."""

import dataclasses
import re

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest
from tests.core.data_adapters import Informed, Tied
from tests.core.gated_adapters import Gated
from tests.core.toys import ToyScale

from jno.lora import JnoLoraWarning, LoRAWrapper, WrapperError
from jno.lora.testing import (
    ADVICE,
    CHECKS,
    ConformanceError,
    check_wrapper,
    parametrize_with_checks,
    run_checks,
    standard_cases,
    wrapper_checks,
)
from jno_lora_testing._checks_transforms import _shard
from jno_lora_testing._comparisons import relative_error

from .broken_adapters import DoesNothing, Good, HalfPrecisionAdapter, MisspeltField, case_of
from .broken_claims import CLAIMS
from .broken_under_jax import BROKEN, DERIVATIVES


@parametrize_with_checks([case_of(it) for it in (Good, Gated, Informed, Tied)], strict=True)
def test_a_correct_adapter_passes(check):
    check()


class MyEmbeddingAdapter(LoRAWrapper):
    """An adapter in the form of the design's first example, and nothing else."""

    adapter_fields = ("delta",)
    base: eqx.Module
    delta: jax.Array
    rank: int = eqx.field(static=True)
    alpha: float = eqx.field(static=True)

    @classmethod
    def applies_to(cls, leaf) -> bool:
        return isinstance(leaf, eqx.nn.Embedding)

    def __init__(self, base, rank, alpha, *, key):
        self.base, self.rank, self.alpha = base, rank, alpha
        self.delta = jnp.zeros_like(base.weight)

    def __call__(self, x):
        return self.base(x) + self.delta[x] * (self.alpha / self.rank)

    def merge(self):
        weight = self.base.weight + self.delta * (self.alpha / self.rank)
        return eqx.tree_at(lambda layer: layer.weight, self.base, weight)


class MyAdapter(MyEmbeddingAdapter):
    @classmethod
    def applies_to(cls, leaf) -> bool:
        return isinstance(leaf, eqx.nn.Linear)

    def __call__(self, x):
        return self.base(x) + self.delta @ x * (self.alpha / self.rank)


@pytest.mark.parametrize("wrapper", [MyEmbeddingAdapter, MyAdapter])
def test_an_adapter_in_the_documented_form_passes_all_that_is_required(wrapper):
    results = [result for case in standard_cases(wrapper) for result in run_checks(case)]
    failed = [result for result in results if result.error is not None]
    assert {(result.check, result.level) for result in failed} == {
        ("applies-to-needs-arrays", "advice"),
        ("adapter-dtype", "advice"),
        ("subclass-merge", "advice"),
    }


def test_advice_is_a_warning_unless_strict():
    case = case_of(HalfPrecisionAdapter)
    with pytest.warns(JnoLoraWarning, match=r"Advice: \[adapter-dtype\] HalfPrecisionAdapter"):
        check_wrapper(case)
    with pytest.raises(ConformanceError, match=r"fails 1 of \d+ checks.\n\n\[adapter-dtype\]"):
        check_wrapper(case, strict=True)

    def test_of(name, **settings):
        parameters = parametrize_with_checks([case], **settings).mark.args[1]
        ((check,),) = (p.values for p in parameters if p.id == f"HalfPrecisionAdapter:{name}")
        return check

    with pytest.warns(JnoLoraWarning, match=r"Advice: \[adapter-dtype\]"):
        test_of("adapter-dtype")()
    assert test_of("applies-to-needs-arrays")() is None
    # An expected failure must be seen to fail.
    for settings in ({"strict": True}, {"expected_failures": {"adapter-dtype": "small"}}):
        with pytest.raises(ConformanceError):
            test_of("adapter-dtype", **settings)()


def test_the_levels_are_those_that_users_rely_on_or_not():
    assert {
        "applies-to-needs-arrays",
        "adapter-dtype",
        "double-precision",
        "jet-rules",
        "stacked-layers",
        "sharding",
        "state-size",
        "subclass-merge",
    } == ADVICE
    assert set(CHECKS) > ADVICE


def test_an_exception_is_reported_with_the_author_s_own_line():
    class Fails(Good):
        def __call__(self, x):
            return jnp.reshape(x, (-7,))

    with pytest.raises(ConformanceError) as error:
        wrapper_checks(case_of(Fails))["vmap"]()
    assert f"(raised in __call__, {__file__}:" in str(error.value)
    assert ": return jnp.reshape(x, (-7,)))\n" in str(error.value)


# tests/kit has a wrong adapter for each required check.
@pytest.mark.parametrize("name", sorted(ADVICE & {*BROKEN}))
def test_each_advice_catches_its_broken_adapter(name):
    with pytest.raises(ConformanceError) as error:
        wrapper_checks(case_of(BROKEN[name]))[name]()
    assert f"[{name}] {BROKEN[name].__name__}" in str(error.value)
    assert "What to do" in str(error.value) or "What is checked" in str(error.value)


@pytest.mark.parametrize("wrapper", CLAIMS)
def test_each_wrong_claim_is_noticed(wrapper):
    name, message = CLAIMS[wrapper]
    with pytest.raises(ConformanceError, match=rf"^\[{name}\] {wrapper.__name__}: ") as error:
        wrapper_checks(case_of(wrapper))[name]()
    assert re.search(message, str(error.value))
    assert "What to do" in str(error.value) or "What is checked" in str(error.value)


class ForgetsStackNdim(Good):
    """Claims stacks, and cannot take one for a layer."""

    @classmethod
    def stack_ndim(cls, leaf):
        return 0

    def __init__(self, base, rank, alpha, *, key):
        outputs, inputs = base.weight.shape
        Good.__init__(self, base, min(rank, outputs, inputs), alpha, key=key)


def test_an_adapter_that_claims_stacks_without_stack_ndim_is_told_to_define_it():
    with pytest.raises(ConformanceError, match="too many values") as error:
        wrapper_checks(case_of(ForgetsStackNdim))["stacked-layers"]()
    assert "whose `stack_ndim` is 0" in str(error.value)
    assert "What to do: define `stack_ndim(leaf)`" in str(error.value)


class MixesTheLayersOfAStack(ToyScale):
    """Claims stacks, takes one for a layer, and computes with the mean over the first axis."""

    def __init__(self, base, rank, alpha, *, key):
        self.base, self.rank, self.alpha = base, rank, alpha
        self.gain, self.constant = jnp.zeros((2, len(base.weight)))

    def __call__(self, x):
        return self.merge()(x)

    def merge(self):
        W = self.base.weight
        gain = self.gain.reshape(-1, *(1,) * (W.ndim - 1))
        weight = W + gain * W.mean(axis=0, keepdims=True)
        return eqx.tree_at(lambda m: m.weight, self.base, weight)


def test_an_adapter_that_mixes_the_layers_of_a_stack_fails_on_its_slices():
    with pytest.raises(ConformanceError, match="Slice 0 of a stacked layer"):
        wrapper_checks(case_of(MixesTheLayersOfAStack))["stacked-layers"]()


class RefusesStacks(Good):
    def __init__(self, base, rank, alpha, *, key):
        raise RuntimeError("for another reason")


def test_a_failure_for_another_reason_does_not_advise_stack_ndim():
    with pytest.raises(ConformanceError, match="for another reason") as error:
        wrapper_checks(case_of(RefusesStacks))["stacked-layers"]()
    assert "What to do" not in str(error.value)


class OneLayerOnly(Good):
    @classmethod
    def applies_to(cls, leaf):
        return Good.applies_to(leaf) and leaf.weight.ndim == 2


def test_a_check_that_has_nothing_to_see_is_not_applicable_and_says_why():
    case = dataclasses.replace(case_of(OneLayerOnly), parameters=None)
    found = {r.check: r.not_applicable for r in run_checks(case) if r.not_applicable is not None}
    assert found == {
        "matrix": "the adapter says no `matrix`",
        "low-rank-update": "the adapter claims no low-rank update",
        "low-rank-scale": "the adapter claims no scale of a low-rank update",
        "subclass": "the adapter does not claim subclasses",
        "subclass-merge": "the adapter does not claim subclasses",
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


class Unmergeable(Good):
    def merge(self):
        raise WrapperError("there is no such weight")


def test_checks_of_merged_layers_do_not_apply_to_adapters_that_cannot_merge():
    case = dataclasses.replace(case_of(Unmergeable), mergeable=False)
    checks = wrapper_checks(case)
    for name in ("merge-equals-call", "merge-gradients", *DERIVATIVES):
        assert checks[name]() == "the adapter cannot be merged"
    assert checks["merge-restores-form"]() is None


class RestoresAnotherScale(Good):
    @classmethod
    def from_state(cls, base, state, rank, alpha):
        return super().from_state(base, state, rank, 1.01 * alpha)


def test_a_restored_adapter_must_compute_the_same():
    case = case_of(RestoresAnotherScale)
    with pytest.raises(ConformanceError, match="restored differs from the saved"):
        wrapper_checks(case)["state-round-trip"]()


def test_each_array_is_cut_along_an_axis_that_the_devices_divide():
    _, shardings = _shard(eqx.nn.Linear(8, 6, key=jax.random.key(0)))
    assert [tuple(sharding.spec) for sharding in shardings] == [(None, "devices"), (None,)]
    assert shardings[0].mesh.size == 8


def test_a_layer_of_which_nothing_can_be_cut_has_no_sharding_to_check():
    case = dataclasses.replace(case_of(Good), base=lambda key: eqx.nn.Identity())
    assert "no array that could be cut" in wrapper_checks(case)["sharding"]()


def test_every_check_has_a_broken_adapter():
    assert set(CHECKS) == {
        *BROKEN,
        *(name for name, _ in CLAIMS.values()),
        "contract",
        "law",
        "symmetries",
    }  # these three have tests of their own


def test_a_class_that_breaks_the_contract_is_told_so():
    with pytest.raises(ConformanceError, match="lora_b"):
        wrapper_checks(case_of(MisspeltField))["contract"]()


def test_check_wrapper_lists_every_failure():
    with pytest.raises(ConformanceError, match=r"DoesNothing fails 2 of \d+ checks") as error:
        check_wrapper(case_of(DoesNothing))
    assert "[adapter-acts]" in str(error.value)
    assert "[gradients]" in str(error.value)


def test_expected_failures_must_name_a_check():
    with pytest.raises(ValueError, match="no-such-check"):
        parametrize_with_checks([case_of(Good)], expected_failures={"no-such-check": "?"})


def test_expected_failures_are_strict():
    decorator = parametrize_with_checks([case_of(Good)], expected_failures={"jit": "not yet"})
    marks = [p.marks for p in decorator.mark.args[1] if p.id == "Good:jit"]
    assert marks[0][0].kwargs["strict"] is True
    assert marks[0][0].kwargs["reason"] == "not yet"


def test_standard_cases_are_the_layers_a_wrapper_claims():
    assert {type(c.make_base()) for c in standard_cases(Good)} == {eqx.nn.Linear}


def test_ids_are_stable():
    assert next(iter(CHECKS)) == "contract"
    assert all(name == name.lower() and "_" not in name for name in CHECKS)


def test_cases_are_named_after_their_wrapper_unless_named():
    case = case_of(Good)
    assert str(case) == "Good"
    assert str(dataclasses.replace(case, name="other")) == "other"


def test_outputs_of_other_shapes_are_infinitely_far_apart():
    assert relative_error(jnp.ones(3), jnp.ones((1, 3))) == float("inf")
    assert relative_error([jnp.ones(3)], [jnp.ones(3), jnp.ones(3)]) == float("inf")
    assert relative_error(jnp.ones((0, 3)), jnp.ones((0, 3))) == 0.0
    assert relative_error(jnp.full(2, jnp.nan), jnp.ones(2)) == float("inf")


def test_an_error_in_the_imaginary_part_is_one():
    assert relative_error(jnp.array([1 + 0j]), jnp.array([1 + 5j])) > 0.9
    assert relative_error(jnp.array([1 + 5j]), jnp.array([1 + 5j])) == 0.0


def test_layers_of_which_a_class_cannot_say_whether_it_is_for_them_are_no_cases():
    class Careless(Good):
        @classmethod
        def applies_to(cls, leaf):
            return leaf.weight.shape == (4, 6)  # not every layer has one

    (case,) = standard_cases(Careless)
    assert str(case) == "Careless-Linear"
    (result,) = (r for r in run_checks(case) if r.check == "applies-to-total")
    assert result.error is not None
