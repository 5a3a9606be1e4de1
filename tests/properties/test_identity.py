"""Adapting can be saved and undone, whatever the model and the method.

No layer is called here: the kit and the oracles test the outputs of adapters.
"""

import functools

import jax
import numpy as np
import pytest
from hypothesis import given, strategies as st

from jno.lora import (
    Net,
    apply_lora,
    load_adapters,
    merge_lora,
    save_adapters,
    unwrap_lora,
)

from .naive import arrays_of
from .random_calls import ATTENTION, BY_METHOD, EXACT, SPLITTING, WITH_OPTIONS, Adapters
from .random_models import examples, layer, models
from .trees import adapters, assert_close, moved, owner, same, trained

# The layers that every method has an adapter for.
SURE = (
    *("linear", "conv", "stack", "transposed", "embedding", "cell", "duck"),
    *("bfloat16 linear", "NumPy conv", "NumPy float64 linear"),
)
KINDS = (
    *("linear", "no bias", "conv", "transposed", "stack", "stack of convs", "stack of stacks"),
    *("stack of containers", "duck", "duck conv", "embedding", "attention", "cell", "norm"),
    *("weight norm", "weight norm of a conv", "tied", "bfloat16 linear", "float16 conv"),
    *("bfloat16 stack", "float16 embedding", "NumPy linear", "NumPy conv", "NumPy float64 linear"),
)
# As a call with IA3 warns that it leaves weight norms alone.
pytestmark = pytest.mark.filterwarnings("ignore::jno.lora.JnoLoraWarning")

MODELS = models(*KINDS, sure=SURE)
HOW = [*BY_METHOD, *WITH_OPTIONS, *ATTENTION]


@st.composite
def cases(draw):
    """A model, and three ways to adapt it, so that few examples make use of all."""
    unit = layer("attention", np.random.default_rng(0))
    first = draw(st.integers(0, len(HOW) - 1))
    model = {"part": draw(MODELS), "unit": unit}
    return model, [HOW[(first + step * len(HOW) // 3) % len(HOW)] for step in range(3)]


CASES = cases()
KEYS = st.integers(0, 5).map(jax.random.key)
SEEDS = st.integers(0, 9)


def adapted(model, how: Adapters, key):
    """With adapters in it."""
    one = apply_lora(model, 2, 3.0, key=key, **how.call)
    assert adapters(one)
    return one


def assert_given_back(plain, model, how: Adapters, *, exactly: bool):
    """NumPy's float64 is float32 to JAX, which the models take care to hold no more than."""
    if exactly:
        assert same(plain, model)
    else:
        assert_close(plain, model, how.coarsest)


def assert_untouched(other, model, wrapped):
    """The arrays that no adapter wraps are the same objects."""
    there = arrays_of("", other)
    for path, array in arrays_of("", model).items():
        if owner(path, wrapped) is None:
            assert there[path] is array


@examples(8)
@given(case=CASES, key=KEYS)
def test_merging_and_unwrapping_give_the_model_back(case, key):
    model, hows = case
    for how in hows:
        one = adapted(model, how, key)
        merged = merge_lora(one)
        assert_given_back(merged, model, how, exactly=how.method in EXACT)
        for other in (one, merged, unwrap_lora(one)):
            assert_untouched(other, model, adapters(one))


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return tmp_path_factory.mktemp("saved") / "adapters.safetensors"


@examples(8)
@given(case=CASES, key=KEYS, seed=SEEDS)
def test_training_can_be_saved_and_undone(case, key, seed, file):
    model, hows = case
    for how in hows:
        one = trained(adapted(model, how, key), seed)
        plain = unwrap_lora(one)
        assert_given_back(plain, model, how, exactly=how.method not in SPLITTING)
        save_adapters(one, file)
        loaded = load_adapters(model, file)
        assert same(loaded, one)
        assert same(merge_lora(loaded), merge_lora(one))
        # A net gives every bit back, with every method.
        net = Net(model, key=key).freeze()
        net.lora(2, 3.0, wrapper=how.call["wrappers"], options=how.options)
        assert not same(net.module, one)
        rng = np.random.default_rng(seed)
        net.update(jax.tree.map(functools.partial(moved, rng=rng), net.partition()[0]))
        assert same(net.unwrap().module, model)
