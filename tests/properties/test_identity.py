"""Adapting changes nothing that is computed, and can be undone, whatever the model and the method.

Nothing is called here but what adapts, merges and unwraps: forward passes have tests of their own.
"""

import equinox as eqx
import jax
import numpy as np
import pytest
from hypothesis import given, strategies as st

from jno.lora import Net, apply_lora, load_adapters, merge_lora, save_adapters, unwrap_lora

from .naive import arrays_of
from .random_models import METHODS, LoRAWrapper, adapters_of, examples, models

# Their update is zero at first, so nothing is rounded: `W + s B A` with `B = 0`, `1 W`.
EXACT = {"LoRA", "rsLoRA", "LoRAFA", "LoRAXS", "VeRA", "IA3", "LoKr", "OFT"}
# They take their part out of the weight and add it again, which rounds it.
SPLITTING = {"PiSSA", "MiLoRA"}

PLAIN = ("linear", "no bias", "conv", "stack", "duck", "norm", "tied")
MODELS = models(*PLAIN)
KEYS = st.integers(0, 5).map(jax.random.key)


def adapted(model, method, key):
    """With the adapters of a method, or as it is if it has no layer for them."""
    classes = adapters_of(method)
    nodes = jax.tree.leaves(model, is_leaf=lambda n: any(c.applies_to(n) for c in classes))
    if not any(cls.applies_to(node) for node in nodes for cls in classes):
        return model
    return apply_lora(model, 2, 3.0, key=key, wrappers=classes)


def same(one, other):
    return bool(eqx.tree_equal(one, other, typematch=True))


def assert_close(one, other, tolerance):
    """One structure, and arrays that differ by so much of their largest number at most."""
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for x, y in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        if not eqx.is_array(y):
            assert x is y or x == y
            continue
        assert (x.shape, x.dtype) == (y.shape, y.dtype)
        x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
        assert np.max(np.abs(x - y), initial=0) <= tolerance * np.max(np.abs(y), initial=0)


def trained(model, seed):
    """As if training had moved every trained array."""
    rng = np.random.default_rng(seed)

    def moved(node):
        if not isinstance(node, LoRAWrapper):
            return node
        names = type(node).adapter_fields
        arrays = [getattr(node, name) for name in names]
        new = [jax.numpy.asarray(np.asarray(x) + rng.normal(size=x.shape), x.dtype) for x in arrays]
        return eqx.tree_at(lambda w: [getattr(w, name) for name in names], node, new)

    return jax.tree.map(moved, model, is_leaf=lambda n: isinstance(n, LoRAWrapper))


@examples(60)
@given(model=MODELS, method=st.sampled_from(METHODS), key=KEYS)
def test_merging_what_was_just_adapted_gives_the_model_back(model, method, key):
    merged = merge_lora(adapted(model, method, key))
    if method in EXACT:
        assert same(merged, model)
    else:
        assert_close(merged, model, 2e-6)


@examples(60)
@given(model=MODELS, method=st.sampled_from(METHODS), key=KEYS, seed=st.integers(0, 9))
def test_unwrapping_gives_the_model_back_whatever_was_trained(model, method, key, seed):
    plain = unwrap_lora(trained(adapted(model, method, key), seed))
    if method in SPLITTING:
        assert_close(plain, model, 2e-6)
    else:
        assert same(plain, model)


@examples(40)
@given(model=MODELS, method=st.sampled_from(METHODS), key=KEYS, seed=st.integers(0, 9))
def test_a_net_gives_every_bit_back_with_every_method(model, method, key, seed):
    if adapted(model, method, key) is model:
        return
    net = Net(model, key=key).freeze().lora(2, 3.0, wrapper=adapters_of(method))
    trainable, _ = net.partition()
    rng = np.random.default_rng(seed)
    net.update(
        jax.tree.map(lambda x: jax.numpy.asarray(x + rng.normal(size=x.shape), x.dtype), trainable)
    )
    assert same(net.unwrap().module, model)


@examples(40)
@given(model=MODELS, method=st.sampled_from(METHODS), key=KEYS)
def test_arrays_that_no_adapter_wraps_are_the_same_objects_in_every_form(model, method, key):
    one = adapted(model, method, key)
    wrapped = {
        jax.tree_util.keystr(keys, simple=True, separator="/")
        for keys, node in jax.tree_util.tree_leaves_with_path(
            one, is_leaf=lambda n: isinstance(n, LoRAWrapper)
        )
        if isinstance(node, LoRAWrapper)
    }
    for other in (one, merge_lora(one), unwrap_lora(one)):
        there = arrays_of("", other)
        for path, array in arrays_of("", model).items():
            if not any(path == p or path.startswith(f"{p}/") for p in wrapped):
                assert there[path] is array


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return tmp_path_factory.mktemp("saved") / "adapters.safetensors"


@examples(40)
@given(model=MODELS, method=st.sampled_from(METHODS), key=KEYS, seed=st.integers(0, 9))
def test_what_is_saved_and_loaded_is_what_was_trained(model, method, key, seed, file):
    one = trained(adapted(model, method, key), seed)
    if one is model or same(one, model):
        return
    save_adapters(one, file)
    loaded = load_adapters(model, file)
    assert same(loaded, one)
    assert same(merge_lora(loaded), merge_lora(one))
