"""The conformance kit bites: for every check there is a broken adapter that it catches."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest
from jax.experimental import io_callback

from jno.lora import LoRAWrapper, WrapperError
from jno.lora.testing import (
    CHECKS,
    ConformanceError,
    WrapperCase,
    check_wrapper,
    parametrize_with_checks,
    run_checks,
    standard_cases,
    wrapper_checks,
)
from jno.lora.testing._conformance import relative_error

from .toys import ToyScale


def update(wrapper):
    return (wrapper.alpha / wrapper.rank) * (wrapper.lora_B @ wrapper.lora_A)


def float_of(weight):
    return weight.astype(jnp.float64 if weight.dtype == jnp.float64 else jnp.float32)


class Good(LoRAWrapper):
    """A correct adapter, which each broken one below changes in one point."""

    adapter_fields = ("lora_A", "lora_B")
    base: eqx.nn.Linear
    lora_A: jax.Array
    lora_B: jax.Array
    rank: int = eqx.field(static=True)
    alpha: float = eqx.field(static=True)

    @classmethod
    def applies_to(cls, leaf):
        return type(leaf) is eqx.nn.Linear and eqx.is_inexact_array(leaf.weight)

    @classmethod
    def stack_ndim(cls, leaf):
        return leaf.weight.ndim - 2

    def __init__(self, base, rank, alpha, *, key):
        self.base, self.rank, self.alpha = base, rank, alpha
        W = float_of(base.weight)
        self.lora_A = jax.random.normal(key, (rank, W.shape[1]), W.dtype)
        self.lora_B = jnp.zeros((W.shape[0], rank), W.dtype)

    def __call__(self, x):
        A, B = self.lora_A.astype(x.dtype), self.lora_B.astype(x.dtype)
        return self.base(x) + (self.alpha / self.rank) * (B @ (A @ x))

    def merge(self):
        W = float_of(self.base.weight) + update(self)
        return eqx.tree_at(lambda m: m.weight, self.base, W.astype(self.base.weight.dtype))


class MisspeltField(Good):
    adapter_fields = ("lora_A", "lora_b")


class Raises(Good):
    @classmethod
    def applies_to(cls, leaf):
        return leaf.weight.ndim >= 2 and type(leaf) is eqx.nn.Linear


class Greedy(Good):
    @classmethod
    def applies_to(cls, leaf):
        weight = getattr(leaf, "weight", None)
        return (
            isinstance(leaf, eqx.Module)
            and not isinstance(leaf, LoRAWrapper)
            and (eqx.is_inexact_array(weight) and weight.ndim >= 2)
        )


class KeepsItsKey(Good):
    own_key: jax.Array

    def __init__(self, base, rank, alpha, *, key):
        self.base, self.rank, self.alpha = base, rank, alpha
        W = float_of(base.weight)
        self.lora_A = jax.random.normal(key, (rank, W.shape[1]), W.dtype)
        self.lora_B = jnp.zeros((W.shape[0], rank), W.dtype)
        self.own_key = key


class IntegerField(Good):
    adapter_fields = ("lora_A", "lora_B", "count")
    count: jax.Array

    def __init__(self, base, rank, alpha, *, key):
        self.base, self.rank, self.alpha = base, rank, alpha
        W = float_of(base.weight)
        self.lora_A = jax.random.normal(key, (rank, W.shape[1]), W.dtype)
        self.lora_B = jnp.zeros((W.shape[0], rank), W.dtype)
        self.count = jnp.zeros((), jnp.int32)


class TooManyParameters(Good):
    extra: jax.Array
    adapter_fields = ("lora_A", "lora_B", "extra")

    def __init__(self, base, rank, alpha, *, key):
        self.base, self.rank, self.alpha = base, rank, alpha
        W = float_of(base.weight)
        self.lora_A = jax.random.normal(key, (rank, W.shape[1]), W.dtype)
        self.lora_B = jnp.zeros((W.shape[0], rank), W.dtype)
        self.extra = jnp.zeros(W.shape[0], W.dtype)

    def __call__(self, x):
        A, B = self.lora_A.astype(x.dtype), self.lora_B.astype(x.dtype)
        low_rank = (self.alpha / self.rank) * (B @ (A @ x))
        return self.base(x) + low_rank + self.extra.astype(x.dtype) * jnp.sum(x)

    def merge(self):
        W = float_of(self.base.weight) + update(self) + self.extra[:, None]
        return eqx.tree_at(lambda m: m.weight, self.base, W.astype(self.base.weight.dtype))


class SharedBuffer(Good):
    first_A: jax.Array

    def __init__(self, base, rank, alpha, *, key):
        self.base, self.rank, self.alpha = base, rank, alpha
        W = float_of(base.weight)
        self.lora_A = jax.random.normal(key, (rank, W.shape[1]), W.dtype)
        self.lora_B = jnp.zeros((W.shape[0], rank), W.dtype)
        self.first_A = self.lora_A


class DoesNotReadThrough(Good):
    def __getattr__(self, name):
        return getattr(self.__dict__["base"], name)


class ForgetsState(Good):
    def state(self):
        return {"lora_A": self.lora_A}

    @classmethod
    def from_state(cls, base, state, rank, alpha):
        fresh = cls(base, rank, alpha, key=jax.random.key(0))
        return eqx.tree_at(lambda w: w.lora_A, fresh, state["lora_A"])


class StartsElsewhere(Good):
    def __init__(self, base, rank, alpha, *, key):
        self.base, self.rank, self.alpha = base, rank, alpha
        W = float_of(base.weight)
        self.lora_A = jax.random.normal(key, (rank, W.shape[1]), W.dtype)
        self.lora_B = jnp.full((W.shape[0], rank), 0.01, W.dtype)


class LosesHalfPrecision(Good):
    """Goes through a type with eight bits where the layer has few bits itself."""

    def __call__(self, x):
        if x.dtype.itemsize == 2:
            x = (x * 0.9).astype(x.dtype) * jnp.asarray(1.25, x.dtype)
        return Good.__call__(self, x)


class DoesNothing(Good):
    def __call__(self, x):
        return self.base(x) + 0 * jnp.sum(self.lora_A).astype(x.dtype)

    def merge(self):
        return self.base


class ForgetsTheScale(Good):
    def merge(self):
        W = float_of(self.base.weight) + self.lora_B @ self.lora_A
        return eqx.tree_at(lambda m: m.weight, self.base, W.astype(self.base.weight.dtype))


class MergesInAnotherDtype(Good):
    def merge(self):
        W = float_of(self.base.weight) + update(self)
        return eqx.tree_at(lambda m: m.weight, self.base, W)


class SpoilsItsBase(Good):
    def __init__(self, base, rank, alpha, *, key):
        W = float_of(base.weight)
        self.lora_A = jnp.ones((rank, W.shape[1]), W.dtype)
        self.lora_B = jax.random.normal(key, (W.shape[0], rank), W.dtype)
        self.rank, self.alpha = rank, alpha
        residual = W - (alpha / rank) * (self.lora_B @ self.lora_A)
        self.base = eqx.tree_at(lambda m: m.weight, base, residual.astype(base.weight.dtype))

    @classmethod
    def from_state(cls, base, state, rank, alpha):
        fresh = cls(base, rank, alpha, key=jax.random.key(3))
        return eqx.tree_at(
            lambda w: (w.lora_A, w.lora_B), fresh, (state["lora_A"], state["lora_B"])
        )


class WidensTheOutput(Good):
    def __call__(self, x):
        y = Good.__call__(self, x)
        return y.astype(jnp.float32) if y.dtype.itemsize == 2 else y


class HalfPrecisionAdapter(Good):
    def __init__(self, base, rank, alpha, *, key):
        self.base, self.rank, self.alpha = base, rank, alpha
        W = base.weight
        self.lora_A = jax.random.normal(key, (rank, W.shape[1]), W.dtype)
        self.lora_B = jnp.zeros((W.shape[0], rank), W.dtype)

    def merge(self):
        return eqx.tree_at(lambda m: m.weight, self.base, self.base.weight + update(self))


class SinglePrecisionOnly(Good):
    def __call__(self, x):
        A, B = self.lora_A.astype(jnp.float32), self.lora_B.astype(jnp.float32)
        low_rank = (self.alpha / self.rank) * (B @ (A @ x.astype(jnp.float32)))
        return self.base(x) + low_rank.astype(x.dtype)


class StopsGradient(Good):
    def __call__(self, x):
        A, B = (jax.lax.stop_gradient(a).astype(x.dtype) for a in (self.lora_A, self.lora_B))
        moving = self.lora_B.astype(x.dtype)
        return self.base(x) + (self.alpha / self.rank) * (moving @ (A @ x)) + 0 * jnp.sum(B)

    def merge(self):
        A = jax.lax.stop_gradient(self.lora_A)
        W = float_of(self.base.weight) + (self.alpha / self.rank) * (self.lora_B @ A)
        return eqx.tree_at(lambda m: m.weight, self.base, W.astype(self.base.weight.dtype))


class MergeStopsGradient(Good):
    def merge(self):
        W = float_of(self.base.weight) + jax.lax.stop_gradient(update(self))
        return eqx.tree_at(lambda m: m.weight, self.base, W.astype(self.base.weight.dtype))


class LooksAtValues(Good):
    """Works eagerly, and inside every transformation but `jit`-compiled construction."""

    def __init__(self, base, rank, alpha, *, key):
        self.base, self.rank, self.alpha = base, rank, alpha
        W = float_of(base.weight)
        spread = float(jnp.std(W))
        self.lora_A = spread * jax.random.normal(key, (rank, W.shape[1]), W.dtype)
        self.lora_B = jnp.zeros((W.shape[0], rank), W.dtype)


class MixesTheBatch(Good):
    """Normalises over whatever axis `vmap` is not told about: differs in a batch."""

    def __call__(self, x):
        return Good.__call__(self, x) + _batch_dependent(x).astype(x.dtype)


@jax.custom_batching.custom_vmap
def _batch_dependent(x):
    return 0 * jnp.sum(x)


@_batch_dependent.def_vmap
def _batch_dependent_vmap(axis_size, in_batched, x):
    return jnp.full((axis_size,), 0.5, x.dtype), True


class ReadsAWrongAxis(Good):
    """Its shapes depend on the size of the whole array, so a mapped constructor works, but not
    what the dispatcher does with a stack."""

    @classmethod
    def stack_ndim(cls, leaf):
        return 0


class AbstractlyOther(Good):
    tag: str = eqx.field(static=True)

    def __init__(self, base, rank, alpha, *, key):
        self.base, self.rank, self.alpha = base, rank, alpha
        W = float_of(base.weight)
        self.lora_A = jax.random.normal(key, (rank, W.shape[1]), W.dtype)
        self.lora_B = jnp.zeros((W.shape[0], rank), W.dtype)
        self.tag = "traced" if isinstance(base.weight, jax.core.Tracer) else "eager"


class Solves(Good):
    def __call__(self, x):
        eye = jnp.eye(x.shape[0], dtype=jnp.float32)
        same = jnp.linalg.solve(eye, x.astype(jnp.float32)).astype(x.dtype)
        return Good.__call__(self, x + 0 * same)


class HasSideEffects(Good):
    """Work that reaches outside cannot be replayed."""

    def __call__(self, x):
        return Good.__call__(self, _tick(x))


@jax.custom_jvp
def _tick(x):
    io_callback(lambda: None, None)
    return x


@_tick.defjvp
def _tick_jvp(primals, tangents):
    return _tick(*primals), tangents[0]


class CallsBackInInit(Good):
    """A callback without a rule for batches works under `jit`, but not under `vmap`."""

    @classmethod
    def applies_to(cls, leaf):
        return Good.applies_to(leaf) and leaf.weight.ndim == 2

    def __init__(self, base, rank, alpha, *, key):
        self.base, self.rank, self.alpha = base, rank, alpha
        W = float_of(base.weight)
        shape = jax.ShapeDtypeStruct((rank, W.shape[1]), W.dtype)
        self.lora_A = jax.pure_callback(lambda w: w[:rank] + 1, shape, W)
        self.lora_B = jnp.zeros((W.shape[0], rank), W.dtype)


class NamesAnotherMesh(Good):
    def partition_specs(self):
        return {"lora_A": jax.sharding.PartitionSpec(None, "an axis of another mesh")}


def case_of(wrapper):
    return WrapperCase(
        wrapper,
        base=lambda key: eqx.nn.Linear(6, 4, key=key),
        inputs=lambda key: (jax.random.normal(key, (6,)),),
        parameters=2 * (6 + 4),
    )


# The broken adapter for each check, and the other checks that cannot but fail with it.
BROKEN = {
    "applies-to-total": (Raises, {"applies-to-not-greedy"}),
    "applies-to-not-greedy": (Greedy, set()),
    "trainable-fields": (IntegerField, {"state-round-trip"}),
    "parameter-count": (TooManyParameters, set()),
    "no-shared-buffers": (SharedBuffer, set()),
    "reads-like-the-layer": (DoesNotReadThrough, set()),
    "state-round-trip": (ForgetsState, set()),
    "identity-at-init": (
        StartsElsewhere,
        {"identity-in-half-precision", "double-precision", "stacked-layers"},
    ),
    "identity-in-half-precision": (LosesHalfPrecision, set()),
    "adapter-acts": (DoesNothing, {"gradients"}),
    "merge-equals-call": (
        ForgetsTheScale,
        {"merge-gradients", "double-precision", "stacked-layers"},
    ),
    "merge-restores-form": (MergesInAnotherDtype, set()),
    "unwrap-restores": (SpoilsItsBase, {"identity-in-half-precision"}),
    "output-dtype": (WidensTheOutput, set()),
    "adapter-dtype": (HalfPrecisionAdapter, set()),
    "double-precision": (SinglePrecisionOnly, set()),
    "gradients": (StopsGradient, set()),
    "merge-gradients": (MergeStopsGradient, set()),
    "key-forms": (KeepsItsKey, {"state-round-trip"}),
    "jit": (
        LooksAtValues,
        {"constructor-vmap-and-scan", "eval-shape", "stacked-layers", "state-round-trip"},
    ),
    "vmap": (MixesTheBatch, set()),
    "stacked-layers": (ReadsAWrongAxis, set()),
    "eval-shape": (AbstractlyOther, {"state-round-trip"}),
    "checkpoint": (HasSideEffects, set()),
    "constructor-vmap-and-scan": (CallsBackInInit, set()),
    "sharding": (NamesAnotherMesh, set()),
    "no-lapack-in-step": (Solves, set()),
}


@parametrize_with_checks([case_of(Good)])
def test_a_correct_adapter_passes(check):
    check()


@pytest.mark.parametrize("name", sorted(BROKEN))
def test_each_check_catches_its_broken_adapter(name):
    wrapper, others = BROKEN[name]
    failed = {r.check: r.error for r in run_checks(case_of(wrapper)) if r.error is not None}
    assert name in failed
    assert set(failed) <= {name, *others}
    assert f"[{name}] {wrapper.__name__}" in str(failed[name])
    assert "What to do" in str(failed[name]) or "What is checked" in str(failed[name])


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


class TakesAStackForALayer(ToyScale):
    """Claims stacks, and gives all of their layers one gain: the slices have none of their own."""

    def __call__(self, x):
        return self.merge()(x)


def test_an_adapter_that_takes_a_stack_for_one_layer_fails_on_its_slices():
    with pytest.raises(ConformanceError, match="whose `stack_ndim` is 0"):
        wrapper_checks(case_of(TakesAStackForALayer))["stacked-layers"]()


class RefusesStacks(Good):
    def __init__(self, base, rank, alpha, *, key):
        raise RuntimeError("for another reason")


def test_a_failure_that_is_not_for_want_of_stack_ndim_is_no_such_advice():
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
        "parameter-count": "the case has no `parameters`",
        "stacked-layers": "the adapter does not claim stacked layers",
    }


class Unmergeable(Good):
    def merge(self):
        raise WrapperError("there is no such weight")


def test_what_needs_a_merged_layer_is_not_applicable_without_one():
    case = dataclasses.replace(case_of(Unmergeable), mergeable=False)
    checks = wrapper_checks(case)
    for name in ("merge-equals-call", "merge-gradients"):
        assert checks[name]() == "the adapter cannot be merged"
    assert checks["merge-restores-form"]() is None


def test_a_layer_of_which_nothing_can_be_cut_has_no_sharding_to_check():
    case = dataclasses.replace(case_of(Good), base=lambda key: eqx.nn.Identity())
    assert "no array that could be cut" in wrapper_checks(case)["sharding"]()


def test_every_check_has_a_broken_adapter():
    assert set(CHECKS) == {*BROKEN, "contract"}


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
    assert [type(c.make_base()) for c in standard_cases(Good)] == [eqx.nn.Linear]


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
            return leaf.weight.shape == (5, 7)  # not every layer has one

    (case,) = standard_cases(Careless)
    assert str(case) == "Careless-Linear"
    (result,) = (r for r in run_checks(case) if r.check == "applies-to-total")
    assert result.error is not None
