"""Statements of a case about its adapter: the law, the ranks, the options, whether it merges."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jno.lora import LoRAWrapper, WrapperError
from jno.lora.testing import ConformanceError, WrapperCase, run_checks, wrapper_checks

from .broken_adapters import Good, case_of, update
from .toys import ToyScale


def law(adapter):
    A, B = (np.asarray(factor, np.float64) for factor in (adapter.lora_A, adapter.lora_B))
    return np.asarray(adapter.base.weight) + adapter.alpha / adapter.rank * (B @ A)


class ReadsTheInputBackwards(Good):
    """One mistake in both: only the paper tells."""

    def __call__(self, x):
        A, B = self.lora_A[:, ::-1].astype(x.dtype), self.lora_B.astype(x.dtype)
        return self.base(x) + (self.alpha / self.rank) * (B @ (A @ x))

    def merge(self):
        W = self.base.weight + update(self)[:, ::-1].astype(self.base.weight.dtype)
        return eqx.tree_at(lambda m: m.weight, self.base, W)


def test_a_mistake_that_merge_and_call_share_is_found_by_the_law_alone():
    case = dataclasses.replace(case_of(ReadsTheInputBackwards), law=law)
    failed = {r.check: r.error for r in run_checks(case) if r.error is not None}
    assert set(failed) == {"law"}
    assert "`merge().weight` and the law differ: relative error" in str(failed["law"])


def test_a_law_may_give_several_attributes_and_has_to_give_their_shapes():
    bias = lambda adapter: {"weight": law(adapter), "bias": np.asarray(adapter.base.bias)}  # noqa: E731
    assert wrapper_checks(dataclasses.replace(case_of(Good), law=bias))["law"]() is None
    for wrong in (lambda a: law(a).T, lambda a: {"bias": 1 + np.asarray(a.base.bias)}):
        with pytest.raises(ConformanceError, match="and the law differ"):
            wrapper_checks(dataclasses.replace(case_of(Good), law=wrong))["law"]()


class Refuses(Good):
    def __init__(self, base, rank, alpha, *, key):
        if rank > 4:
            raise ValueError(f"the rank must be 4 at most, but is {rank}")
        Good.__init__(self, base, rank, alpha, key=key)


class RefusesWhenCalled(Good):
    def __call__(self, x):
        if self.rank == 3:
            raise ValueError("no odd ranks")
        return Good.__call__(self, x)


class ReshapesByTheRank(Good):
    """Two blocks, which make a whole at even ranks only."""

    def __init__(self, base, rank, alpha, *, key):
        Good.__init__(self, base, rank, alpha, key=key)
        self.lora_A = self.lora_A.reshape(2, rank // 2, 6).reshape(rank, 6)


class OverflowsAtRankOne(Good):
    def __call__(self, x):
        return Good.__call__(self, x) * (1e38 if self.rank == 1 else 1) * 1e3


def test_a_constructor_may_refuse_a_rank_with_a_message():
    assert wrapper_checks(case_of(Refuses))["ranks"]() is None


@pytest.mark.parametrize(
    ("wrapper", "said"),
    [
        (RefusesWhenCalled, "With rank 3, it fails: ValueError: no odd ranks"),
        (ReshapesByTheRank, "With rank 1, it fails: TypeError: cannot reshape"),
        (OverflowsAtRankOne, "With rank 1, the output is not finite"),
    ],
)
def test_ranks_fail_otherwise_and_the_message_says_which(wrapper, said):
    with pytest.raises(ConformanceError) as error:
        wrapper_checks(case_of(wrapper))["ranks"]()
    assert said in str(error.value)
    assert "With rank" not in str(error.value) or "raise ValueError(...)" in str(error.value)


class Prefix(Good):
    mergeable = False

    def merge(self):
        raise WrapperError("a prefix is not a weight")


def test_a_class_says_whether_it_can_be_merged_and_a_case_may_say_otherwise():
    assert LoRAWrapper.mergeable is True
    case = case_of(Prefix)
    assert case.mergeable is False and case_of(Good).mergeable is True
    assert [r.check for r in run_checks(case) if r.error is not None] == []
    adapter = case.make_trained()
    assert adapter.weight is adapter.base.weight  # read as the layer's own
    told = dataclasses.replace(case, mergeable=True)
    with pytest.raises(ConformanceError, match="a prefix is not a weight"):
        wrapper_checks(told)["merge-equals-call"]()


def test_mergeable_must_be_a_bool():
    class Says(Good):
        mergeable = "no"  # pyright: ignore[reportAssignmentType]

    with pytest.raises(ConformanceError, match="`mergeable` must be True or False, but is 'no'"):
        wrapper_checks(case_of(Says))["contract"]()


class Blocks(ToyScale):
    """An option that changes a shape."""

    def __init__(self, base, rank, alpha, *, key, blocks=1):
        self.base, self.rank, self.alpha = base, rank, alpha
        self.gain, self.constant = jnp.zeros(blocks), jnp.zeros(())

    def __call__(self, x):
        return self.merge()(x)

    def merge(self):
        W = self.base.weight
        return eqx.tree_at(lambda m: m.weight, self.base, W * (1 + self.gain.sum().astype(W.dtype)))


def test_options_that_cannot_be_loaded_lead_to_options_of():
    case = dataclasses.replace(case_of(Blocks), options={"blocks": 3}, parameters=None)
    with pytest.raises(ConformanceError, match="the saved adapter cannot be loaded") as error:
        wrapper_checks(case)["state-round-trip"]()
    assert "With the options {'blocks': 3}" in str(error.value)
    assert "expected shape (1,), got (3,)" in str(error.value)
    assert "let `options_of(state)` give the options" in str(error.value)


class Residual(Good):
    """Its base is computed again when it is loaded, and rounded otherwise."""

    @classmethod
    def from_state(cls, base, state, rank, alpha):
        shifted = eqx.tree_at(lambda m: m.weight, base, base.weight * jnp.float32(1 + 2e-7))  # pyright: ignore
        return super().from_state(shifted, state, rank, alpha)


class ChangesItsState(Good):
    @classmethod
    def from_state(cls, base, state, rank, alpha):
        state = {name: array * jnp.float32(1 + 2e-7) for name, array in state.items()}
        return super().from_state(base, state, rank, alpha)


def test_what_was_saved_comes_back_bit_for_bit_and_the_output_to_rounding():
    assert wrapper_checks(case_of(Residual))["state-round-trip"]() is None
    with pytest.raises(ConformanceError, match="is not the state that was saved"):
        wrapper_checks(case_of(ChangesItsState))["state-round-trip"]()


def test_what_a_case_makes_is_made_once_for_each_dtype_seed_and_precision():
    case = case_of(Good)
    assert case.make_base() is case.make_base() and case.make() is case.make()
    assert case.make_base(seed=5) is not case.make_base(seed=6)
    assert case.make(jnp.bfloat16).base.weight.dtype == jnp.bfloat16
    doubles = WrapperCase(Good, case.base, lambda key: (jax.random.normal(key, (6,), float),))
    (single,) = doubles.make_inputs()
    with jax.enable_x64(True):
        (double,) = doubles.make_inputs()
    assert (single.dtype, double.dtype) == (jnp.float32, jnp.float64)


class Mixing(eqx.Module):
    """A complex matrix, and a real bias that is added to the real part."""

    weight: jax.Array
    bias: jax.Array

    def __init__(self, inputs, outputs, *, key):
        # Promotes, which is the layer's affair.
        self.weight = jax.random.normal(key, (outputs, inputs)) * jnp.complex64(1 + 1j)
        self.bias = jnp.ones(outputs)

    def __call__(self, x):
        y = self.weight @ x
        return y + self.bias.astype(y.dtype)


class ComplexUpdate(Good):
    @classmethod
    def applies_to(cls, leaf):
        is_array = type(leaf) is Mixing and eqx.is_inexact_array(leaf.weight)
        return is_array and leaf.weight.ndim == 2

    def __init__(self, base, rank, alpha, *, key):
        self.base, self.rank, self.alpha = base, rank, alpha
        outputs, inputs = base.weight.shape
        self.lora_A = jax.random.normal(key, (rank, inputs), base.weight.dtype)
        self.lora_B = jnp.zeros((outputs, rank), base.weight.dtype)

    def merge(self):
        return eqx.tree_at(lambda m: m.weight, self.base, self.base.weight + update(self))


def test_a_correct_adapter_of_a_complex_layer_passes():
    case = WrapperCase(
        ComplexUpdate,
        base=lambda key: Mixing(6, 4, key=key),
        inputs=lambda key: (jax.random.normal(key, (6,), jnp.complex64),),
    )
    assert case.make_base(jnp.bfloat16).weight.dtype == jnp.complex64
    assert case.make_base(jnp.bfloat16).bias.dtype == jnp.bfloat16
    assert [str(r.error) for r in run_checks(case) if r.error is not None] == []
