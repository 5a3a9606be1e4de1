"""A wrapper's contract: it reads like its layer, tolerates `key=`, and keeps its state.

Each way to break the contract of a class is named.
"""

import copy

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jno.lora import (
    About,
    ConvLike,
    LinearLike,
    LoRAWrapper,
    MatrixAdapter,
    WrapperError,
    apply_lora,
    merge_lora,
)
from jno.lora._contract.problems import check_contract, contract_problems

from .files._tools import Assorted
from .toys import Block, ToyBlock, ToyConv, ToyLinear, ToyScale, same, shaken

X = jnp.arange(3.0)


@pytest.fixture
def linear(getkey):
    return eqx.nn.Linear(3, 2, key=getkey())


@pytest.fixture
def wrapper(linear, getkey):
    return shaken(ToyLinear(linear, 2, 1.0, key=getkey()))


def test_static_attributes_come_from_the_base_and_arrays_from_the_merged_layer(wrapper, getkey):
    assert (wrapper.in_features, wrapper.out_features, wrapper.use_bias) == (3, 2, True)
    conv = ToyConv(eqx.nn.Conv2d(2, 4, (3, 1), stride=2, key=getkey()), 1, 1.0, key=getkey())
    assert (conv.kernel_size, conv.stride, conv.groups) == ((3, 1), (2, 2), 1)
    assert not jnp.array_equal(wrapper.weight, wrapper.base.weight)
    assert jnp.array_equal(wrapper.weight, wrapper.merge().weight)
    assert same(merge_lora(wrapper), wrapper.merge()) and wrapper.unwrap() is wrapper.base
    assert jnp.array_equal(wrapper.bias, wrapper.base.bias)
    assert wrapper.rank == 2 and wrapper.lora_A.shape == (2, 3)  # its own fields come first
    grads = eqx.filter_grad(lambda w: jnp.sum(w.weight**2))(wrapper)
    assert jnp.any(grads.lora_A != 0) and jnp.any(grads.lora_B != 0)

    block = shaken(ToyBlock(Block(2, key=getkey()), 1, 1.0, key=getkey()))  # and methods too
    assert jnp.array_equal(block.first_bias(), block.base.up.bias)
    assert jnp.array_equal(block.down.bias, block.base.down.bias + block.shift)
    assert {"up", "slope", "first_bias", "shift", "base", "merge"} <= set(dir(block))


def test_a_name_that_neither_has_and_a_dunder_name_are_not_handed_through(wrapper, getkey):
    class Sized(eqx.nn.Linear):
        def __len__(self):
            return 7

    with pytest.raises(AttributeError, match=r"'ToyLinear' nor the 'Linear'.*'in_featuers'"):
        _ = wrapper.in_featuers
    assert not hasattr(ToyLinear(Sized(3, 2, key=getkey()), 1, 1.0, key=getkey()), "__len__")
    assert same(copy.copy(wrapper), wrapper) and same(copy.deepcopy(wrapper), wrapper)


def test_while_it_is_built_an_adapter_reads_nothing_through(linear, getkey):
    class Forgetful(ToyLinear):
        weight: jax.Array

        def __init__(self, base, rank, alpha, *, key):
            self.base, self.rank, self.alpha = base, rank, alpha
            self.lora_A = self.lora_B = self.weight * 2

    with pytest.raises(AttributeError, match="'Forgetful' has no attribute 'weight'"):
        Forgetful(linear, 1, 1.0, key=getkey())


def test_a_wrapper_looks_like_the_layer_it_wraps(wrapper, linear, getkey):
    class Mine(LinearLike):
        pass

    for layer in (linear, wrapper):
        assert isinstance(layer, LinearLike) and not isinstance(layer, ConvLike)
    conv = eqx.nn.Conv1d(1, 1, 1, key=getkey())
    assert isinstance(conv, ConvLike) and not isinstance(conv, LinearLike)
    assert not isinstance(linear, Mine) and isinstance(Mine(), LinearLike)


def test_a_key_reaches_a_call_that_takes_it_and_is_dropped_elsewhere(linear, getkey):
    class Noisy(ToyLinear):
        def __call__(self, x, *, key):
            return ToyLinear.__call__(self, x) + jax.random.normal(key, (2,))

    class Jitted(ToyLinear):
        @eqx.filter_jit
        def __call__(self, x):
            return self.base(x)

    key = getkey()
    noisy = Noisy(linear, 1, 1.0, key=key)
    assert jnp.array_equal(noisy(X, key=key), linear(X) + jax.random.normal(key, (2,)))
    for cls in (ToyLinear, Jitted):
        adapter = cls(linear, 1, 1.0, key=key)
        sequence = eqx.nn.Sequential([adapter, eqx.nn.Lambda(jax.nn.relu)])
        assert jnp.allclose(sequence(X, key=key), jax.nn.relu(linear(X)))
        assert jnp.allclose(adapter(X), linear(X))
        for arguments in ({"scale": 2}, {"x": 1}):
            with pytest.raises(TypeError):
                adapter(X, **arguments)


def test_from_state_restores_every_bit_of_every_array_outside_the_base(linear, getkey):
    names = {
        ToyLinear: {"lora_A", "lora_B"},
        ToyScale: {"gain", "constant"},
        Assorted: {"trained", "kept/scalar", "kept/none", "kept/a/0"},
    }
    for cls, expected in names.items():
        wrapper = shaken(cls(linear, 2, 3.0, key=getkey()))
        assert wrapper.state().keys() == expected
        state = {name: jnp.asarray(np.asarray(x)) for name, x in wrapper.state().items()}
        restored = cls.from_state(linear, state, 2, 3.0)
        assert same(restored, wrapper) and restored.base.weight is linear.weight


def test_a_state_that_does_not_fit_is_an_error_that_lists_every_misfit(wrapper, linear):
    state = {"lora_A": wrapper.lora_A, "magnitude": X}
    with pytest.raises(WrapperError, match="does not fit ToyLinear") as caught:
        ToyLinear.from_state(linear, state, 1, 1.0)
    for misfit in (
        "lora_B: expected, missing",
        "magnitude: not a field of ToyLinear",
        "lora_A: expected shape (1, 3), got (2, 3)",
    ):
        assert misfit in str(caught.value)
    assert "lora_B: expected shape" not in str(caught.value)


# --- mistakes in a class


def without(*names):
    """A class body without these members."""
    body = {
        "adapter_fields": ("delta",),
        "applies_to": classmethod(lambda cls, leaf: False),
        "__call__": lambda self, x: x,
        "merge": lambda self: self.base,
        "__init__": lambda self, base, rank, alpha, *, key: None,
        "rank": eqx.field(static=True),
        "alpha": eqx.field(static=True),
        "__annotations__": {"base": eqx.Module, "delta": jax.Array, "rank": int, "alpha": float},
    }
    for name in names:
        body.pop(name, None)
        body["__annotations__"].pop(name, None)
    return body


def define(body=None, **members):
    return type(LoRAWrapper)("Broken", (MatrixAdapter,), {**(body or without()), **members})


PROBLEMS = {
    "a string": ({"adapter_fields": "delta"}, "`adapter_fields` must be a .*mind the comma.*delta"),
    "no field": ({"adapter_fields": ()}, r"`adapter_fields` must be a non-empty tuple.*\(\)"),
    "a typo": ({"adapter_fields": ("detla",)}, r"`adapter_fields` names 'detla'.*\['base', 'delta"),
    "a static field": ({"adapter_fields": ("rank",)}, "names 'rank', which is static"),
    "the base": ({"adapter_fields": ("base",)}, "'base', which must stay frozen"),
    "optional": ({"optional_fields": ("gain",)}, "`optional_fields` names 'gain', which is not"),
    "axes": ({"rank_axes": {"detla": 0}}, "`rank_axes` names 'detla', which is not a field"),
    "factors": ({"factor_sides": {"detla": "input"}}, "`factor_sides` names 'detla', which is not"),
    "no rank": (without("rank"), "`rank` is not defined, but `__init__` takes it"),
    "base": ({**without("base"), "base": property(lambda self: None)}, "`base` must be a field"),
    "no key": ({"__init__": lambda self, base, rank, alpha: None}, "`__init__` must accept"),
    "extra": ({"__init__": lambda self, base, rank, alpha, x, *, key: 0}, "`__init__` must accept"),
    "no classmethod": ({"stack_ndim": lambda leaf: 0}, "`stack_ndim` must be a classmethod"),
    "reserved variant": ({"variant": "All-Linear"}, "`variant` must be a word .*'All-Linear'"),
    "about": ({"about": "text"}, "`about` must be a jno.lora.About of texts.*'text'"),
}


@pytest.mark.parametrize(("members", "problem"), PROBLEMS.values(), ids=PROBLEMS)
def test_each_mistake_in_a_class_is_named(members, problem, unchecked):
    cls = define(members) if "merge" in members else define(**members)
    assert len(contract_problems(cls)) == 1
    with pytest.raises(WrapperError, match=rf"(?s)Broken is not a usable.*{problem}.*LoRAWrapper"):
        check_contract(cls)


def test_a_member_about_matrices_needs_the_base_class_that_has_it():
    members = {**without(), "low_rank_form": lambda self: None}
    (problem,) = contract_problems(type(LoRAWrapper)("Broken", (LoRAWrapper,), members))
    assert problem == "`low_rank_form` is only read in a subclass of jno.lora.MatrixAdapter"


def test_all_mistakes_are_named_before_the_model_is_looked_at(model, getkey, unchecked):
    names = ["__call__", "adapter_fields", "applies_to", "base", "merge"]
    missing = tuple(f"`{name}` is not defined" for name in names)
    assert contract_problems(define(without(*names))) == missing
    (problem,) = contract_problems(define(about=About(formula=3)))
    assert problem.startswith("`about` must be a jno.lora.About of texts") and "3" in problem
    cls = define(adapter_fields="delta", applies_to=lambda self, leaf: False)
    with pytest.raises(WrapperError, match=r"(?s)mind the comma.*`applies_to` must be a classm"):
        apply_lora(model, 1, key=getkey(), wrapper=cls)
    for thing in (eqx.nn.Linear, None, ToyLinear(model.head, 1, 1.0, key=getkey())):
        (problem,) = contract_problems(thing)
        assert problem == f"{thing!r} is not a subclass of jno.lora.LoRAWrapper"
