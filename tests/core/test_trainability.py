"""The boolean trees: by path and field, in the model's structure, of Python bools."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jno.lora import (
    apply_lora,
    lora_param_labels,
    lora_trainable_filter,
    partial_lora_trainable_filter,
)

from .toys import ToyLinear, ToyScale, array_paths, selected

FILTERS = [lora_trainable_filter, partial_lora_trainable_filter]


@pytest.fixture
def adapted(model, getkey):
    return apply_lora(model, 1, key=getkey(), target="encoder/0", wrapper=ToyScale)


@pytest.fixture
def linear(getkey):
    return eqx.nn.Linear(2, 2, key=getkey())


def test_each_filter_selects_by_path_in_the_structure_of_the_model(model, adapted):
    assert selected(lora_trainable_filter(model)) == set()
    assert selected(partial_lora_trainable_filter(model)) == array_paths(model)
    outside = array_paths(model) - {"encoder/0/weight", "encoder/0/bias"}
    for mask_of, expected in zip(FILTERS, (set(), outside), strict=True):
        mask = mask_of(adapted)
        assert selected(mask) == expected | {"encoder/0/gain"}
        assert jax.tree.structure(mask) == jax.tree.structure(adapted)
        template = eqx.filter_eval_shape(lambda: adapted)
        assert selected(mask_of(template)) == selected(mask)


@pytest.mark.parametrize("mask_of", FILTERS)
def test_one_array_in_two_places_is_marked_by_path(linear, getkey, mask_of):
    wrapper = ToyScale(linear, 1, 1.0, key=getkey())
    gain = wrapper.gain
    sharing = eqx.tree_at(lambda w: (w.constant, w.base.bias), wrapper, (gain, gain))
    assert sharing.gain is sharing.constant is sharing.base.bias
    outside = {"outside", "base/weight", "base/bias"} if mask_of is not FILTERS[0] else set()
    model = {"a": sharing, "outside": gain, "base": linear}
    assert selected(mask_of(model)) == {"a/gain"} | outside


class Listed(eqx.Module):
    listed: jax.Array
    names: list[str] = eqx.field(static=True)  # cannot be hashed


def test_only_inexact_arrays_train():
    trains = {"half": jnp.ones(1, jnp.bfloat16), "complex": jnp.ones(1, jnp.complex64)}
    model = {
        **trains,
        "numpy": np.ones(1),
        "int": jnp.ones(1, jnp.int32),
        "bool": jnp.ones(1, bool),
        "typed key": jax.random.key(0),
        "raw key": jax.random.PRNGKey(0),
        "python": [1, 2.0, 3j, True, "text", None, jax.nn.relu],
        "a": Listed(jnp.ones(2), ["a"]),
    }
    assert selected(lora_trainable_filter(model)) == set()
    assert selected(partial_lora_trainable_filter(model)) == {*trains, "numpy", "a/listed"}


class Rich(ToyScale):
    """Adapter fields that hold more than one float array; the adapter changes nothing."""

    adapter_fields = ("parts",)
    parts: Any
    frozen: Any

    def __init__(self, base, rank, alpha, *, key):
        ToyScale.__init__(self, base, rank, alpha, key=key)
        self.frozen = [jnp.ones(1), ToyScale(base, rank, alpha, key=key)]
        self.parts = {"a": jnp.ones(1), "steps": jnp.zeros((), int), "key": key, "f": jnp.tanh}

    def merge(self):
        return self.base


class Outer(Rich):
    """An adapter built of adapters."""

    def __init__(self, base, rank, alpha, *, key):
        super().__init__(base, rank, alpha, key=key)
        inner = eqx.nn.Linear(2, 2, key=key)
        self.parts = [jnp.ones(1), ToyScale(inner, rank, alpha, key=key)]


def around(inner, key):
    """An adapter whose base is an adapter."""
    outer = ToyLinear(inner.base, 1, 1.0, key=key)
    return eqx.tree_at(lambda w: w.base, outer, inner)


@pytest.mark.parametrize("mask_of", FILTERS)
@pytest.mark.parametrize(
    ("make", "trains"),
    [
        (ToyLinear, {"lora_A", "lora_B"}),
        (Rich, {"parts/a"}),
        (Outer, {"parts/0", "parts/1/gain"}),
        (
            lambda base, *args, key: around(ToyScale(base, *args, key=key), key),
            {"lora_A", "lora_B"},
        ),
    ],
)
def test_a_model_that_is_one_adapter_trains_its_fields(linear, getkey, mask_of, make, trains):
    assert selected(mask_of(make(linear, 1, 1.0, key=getkey()))) == trains


def test_a_filter_is_the_callers_to_change(model, getkey):
    adapted = apply_lora(model, 1, key=getkey(), wrapper=ToyLinear)
    first = lora_trainable_filter(adapted)
    first.encoder[0] = None  # a list in the model is a list in the filter
    second = lora_trainable_filter(adapted)
    assert jax.tree.structure(second) == jax.tree.structure(adapted)
    # A model of other dtypes has another filter.
    whole = jax.tree.map(lambda x: x.astype(jnp.int32) if eqx.is_array(x) else x, adapted)
    assert not any(selected(mask_of(whole)) for mask_of in FILTERS)


def test_labels_are_fields_of_adapters_and_other(adapted, linear, getkey):
    key = getkey()
    model = {"a": ToyLinear(linear, 1, 1.0, key=key), "nested": Outer(linear, 1, 1.0, key=key)}
    labels = lora_param_labels({**model, "plain": linear})
    assert jax.tree.structure(labels) == jax.tree.structure({**model, "plain": linear})
    a, nested = labels["a"], labels["nested"].parts
    assert (a.lora_A, a.lora_B, a.base.weight) == ("lora_A", "lora_B", "other")
    assert (nested[0], nested[1].gain, nested[1].base.weight) == ("parts", "gain", "other")
    assert set(jax.tree.leaves(labels["plain"])) == {"other"}
    twice = around(ToyScale(linear, 1, 1.0, key=key), key)  # the inner adapter is the layer
    assert set(jax.tree.leaves(lora_param_labels(twice).base)) == {"other"}
    trainable, _ = eqx.partition(adapted, lora_trainable_filter(adapted))
    assert jax.tree.leaves(lora_param_labels(trainable)) == ["gain"]
