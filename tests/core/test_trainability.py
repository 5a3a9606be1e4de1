"""The boolean trees: by path and field, in the model's structure, of Python bools."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jno.lora import (
    LoRAWrapper,
    Net,
    apply_lora,
    lora_param_labels,
    lora_trainable_filter,
    partial_lora_trainable_filter,
    refresh,
)

from .toys import ToyLinear, ToyScale, array_paths, selected

FILTERS = [lora_trainable_filter, partial_lora_trainable_filter]


@pytest.fixture
def adapted(model, getkey):
    return apply_lora(model, 1, key=getkey(), target="encoder/0", wrapper=ToyScale)


@pytest.fixture
def linear(getkey):
    return eqx.nn.Linear(2, 2, key=getkey())


def test_a_plain_model_has_no_adapter_fields_and_trains_in_full(model):
    assert selected(lora_trainable_filter(model)) == set()
    assert selected(partial_lora_trainable_filter(model)) == array_paths(model)


def test_the_lora_filter_selects_the_adapter_fields_alone(adapted):
    assert selected(lora_trainable_filter(adapted)) == {"encoder/0/gain"}


def test_the_partial_filter_adds_what_lies_outside_any_wrapper(adapted):
    assert selected(partial_lora_trainable_filter(adapted)) == {
        "embedding/weight",
        "encoder/0/gain",
        "encoder/1/weight",
        "encoder/1/bias",
        "head/weight",
        "head/bias",
        "temperature",
    }


@pytest.mark.parametrize("mask_of", FILTERS)
def test_the_structure_is_that_of_the_model(adapted, mask_of):
    mask = mask_of(adapted)
    assert jax.tree.structure(mask) == jax.tree.structure(adapted)
    trainable, frozen = eqx.partition(adapted, mask)
    assert eqx.tree_equal(eqx.combine(trainable, frozen), adapted)


@pytest.mark.parametrize("mask_of", FILTERS)
def test_a_model_that_is_one_wrapper(linear, getkey, mask_of):
    wrapper = ToyLinear(linear, 1, 1.0, key=getkey())
    assert selected(mask_of(wrapper)) == {"lora_A", "lora_B"}


@pytest.mark.parametrize("mask_of", FILTERS)
def test_one_array_in_two_places_is_marked_by_path(linear, getkey, mask_of):
    wrapper = ToyScale(linear, 1, 1.0, key=getkey())
    gain = wrapper.gain
    sharing = eqx.tree_at(lambda w: (w.constant, w.base.bias), wrapper, (gain, gain))
    assert sharing.gain is sharing.constant is sharing.base.bias
    assert selected(mask_of({"a": sharing})) == {"a/gain"}


def test_an_array_that_is_also_an_adapter_field_still_trains_outside(linear, getkey):
    wrapper = ToyScale(linear, 1, 1.0, key=getkey())
    model = {"adapter": wrapper, "outside": wrapper.gain, "base": linear}
    assert selected(lora_trainable_filter(model)) == {"adapter/gain"}
    assert selected(partial_lora_trainable_filter(model)) == {
        "adapter/gain",
        "outside",
        "base/weight",
        "base/bias",
    }


@pytest.mark.parametrize("mask_of", FILTERS)
def test_a_template_of_shapes_has_the_mask_of_the_model(adapted, mask_of):
    template = eqx.filter_eval_shape(lambda: adapted)
    assert selected(mask_of(template)) == selected(mask_of(adapted))


class Listed(eqx.Module):
    weight: jax.Array
    names: list[str] = eqx.field(static=True)  # cannot be hashed


def test_a_static_field_without_a_hash_is_allowed(adapted):
    model = {"adapted": adapted, "listed": Listed(jnp.ones(2), ["a"])}
    trains = {f"adapted/{path}" for path in selected(lora_trainable_filter(adapted))}
    assert selected(lora_trainable_filter(model)) == trains
    partial = selected(partial_lora_trainable_filter(model))
    assert partial >= trains | {"listed/weight"}


def test_only_inexact_arrays_train():
    model = {
        "float": jnp.ones(1),
        "half": jnp.ones(1, jnp.bfloat16),
        "complex": jnp.ones(1, jnp.complex64),
        "numpy": np.ones(1),
        "int": jnp.ones(1, jnp.int32),
        "bool": jnp.ones(1, bool),
        "typed key": jax.random.key(0),
        "raw key": jax.random.PRNGKey(0),
        "function": jax.nn.relu,
        "python": [1, 2.0, 3j, True, "text", None],
    }
    assert selected(lora_trainable_filter(model)) == set()
    assert selected(partial_lora_trainable_filter(model)) == {"float", "half", "complex", "numpy"}


class Rich(LoRAWrapper):
    """Adapter fields that hold more than one float array."""

    adapter_fields = ("parts",)
    base: eqx.Module
    parts: dict
    frozen: list
    rank: int = eqx.field(static=True)
    alpha: float = eqx.field(static=True)

    @classmethod
    def applies_to(cls, leaf):
        return isinstance(leaf, eqx.nn.Linear)

    def __init__(self, base, rank, alpha, *, key):
        self.base, self.rank, self.alpha = base, rank, alpha
        self.parts = {"a": jnp.ones(1), "steps": jnp.zeros((), int), "key": key, "f": jnp.tanh}
        self.frozen = [jnp.ones(1), ToyScale(base, rank, alpha, key=key)]

    def __call__(self, x):
        return self.base(x)

    def merge(self):
        return self.base


@pytest.mark.parametrize("mask_of", FILTERS)
def test_in_an_adapter_field_only_inexact_arrays_train(linear, getkey, mask_of):
    assert selected(mask_of(Rich(linear, 1, 1.0, key=getkey()))) == {"parts/a"}


class Outer(LoRAWrapper):
    """An adapter built of adapters."""

    adapter_fields = ("inner",)
    base: eqx.Module
    inner: ToyScale
    rank: int = eqx.field(static=True)
    alpha: float = eqx.field(static=True)

    @classmethod
    def applies_to(cls, leaf):
        return isinstance(leaf, eqx.nn.Linear)

    def __init__(self, base, rank, alpha, *, key):
        self.base, self.rank, self.alpha = base, rank, alpha
        self.inner = ToyScale(eqx.nn.Linear(2, 2, key=key), rank, alpha, key=key)

    def __call__(self, x):
        return self.base(x) + self.inner(x)

    def merge(self):
        return self.base


@pytest.mark.parametrize("mask_of", FILTERS)
def test_the_fields_of_an_adapter_inside_an_adapter_field_train(linear, getkey, mask_of):
    assert selected(mask_of(Outer(linear, 1, 1.0, key=getkey()))) == {"inner/gain"}


@pytest.mark.parametrize("mask_of", FILTERS)
def test_an_adapter_inside_a_wrapped_base_is_frozen(linear, getkey, mask_of):
    inner = ToyScale(linear, 1, 1.0, key=getkey())
    outer = eqx.tree_at(lambda w: w.base, ToyLinear(linear, 1, 1.0, key=getkey()), inner)
    assert selected(mask_of(outer)) == {"lora_A", "lora_B"}


def test_a_subclass_says_itself_which_fields_train(linear, getkey):
    class BOnly(ToyLinear):
        adapter_fields = ("lora_B",)

    assert selected(lora_trainable_filter(BOnly(linear, 1, 1.0, key=getkey()))) == {"lora_B"}


def test_a_filter_is_the_callers_to_change(model, getkey):
    adapted = apply_lora(model, 1, key=getkey(), wrapper=ToyLinear)
    first = lora_trainable_filter(adapted)
    first.encoder[0] = None  # a list in the model is a list in the filter
    second = lora_trainable_filter(adapted)
    assert jax.tree.structure(second) == jax.tree.structure(adapted)
    assert selected(second) == selected(lora_trainable_filter(adapted)) != selected(first)


def test_models_of_other_dtypes_have_other_filters(model, getkey):
    adapted = apply_lora(model, 1, key=getkey(), wrapper=ToyLinear)
    whole = jax.tree.map(lambda x: x.astype(jnp.int32) if eqx.is_array(x) else x, adapted)
    assert selected(lora_trainable_filter(adapted))
    assert not selected(lora_trainable_filter(whole))
    assert not selected(partial_lora_trainable_filter(whole))


def test_fields_that_a_class_is_given_later_train_after_a_refresh(linear, getkey):
    class Edited(ToyLinear):
        adapter_fields = ("lora_A",)

    wrapper = Edited(linear, 1, 1.0, key=getkey())
    assert sum(jax.tree.leaves(lora_trainable_filter(wrapper))) == 1
    Edited.adapter_fields = ToyLinear.adapter_fields
    refresh()
    mask = lora_trainable_filter(wrapper)
    assert sum(jax.tree.leaves(mask)) == len(ToyLinear.adapter_fields) > 1


# --- labels for optax


def test_labels_are_fields_of_adapters_and_other(adapted, linear, getkey):
    key = getkey()
    model = {"a": ToyLinear(linear, 1, 1.0, key=key), "nested": Outer(linear, 1, 1.0, key=key)}
    labels = lora_param_labels({**model, "plain": linear})
    assert jax.tree.structure(labels) == jax.tree.structure({**model, "plain": linear})
    a, nested = labels["a"], labels["nested"]
    assert (a.lora_A, a.lora_B, a.base.weight) == ("lora_A", "lora_B", "other")
    assert (nested.inner.gain, nested.inner.base.weight) == ("gain", "other")
    assert set(jax.tree.leaves(labels["plain"])) == {"other"}
    trainable, _ = eqx.partition(adapted, lora_trainable_filter(adapted))
    assert jax.tree.leaves(lora_param_labels(trainable)) == ["gain"]


def test_optax_takes_the_labels_of_a_model_that_is_callable(getkey):
    optax = pytest.importorskip("optax")
    model = eqx.nn.MLP(2, 2, 4, 1, key=getkey())  # has a `__call__`
    net = Net(model).lora(2, wrapper=ToyLinear, target="layers/0")
    trainable, _ = net.partition()
    grads = jax.tree.map(jnp.ones_like, trainable)
    rates = {"lora_A": 1.0, "lora_B": 16.0, "other": 2.0}
    plus = optax.multi_transform(
        {name: optax.sgd(rate) for name, rate in rates.items()}, lora_param_labels
    )
    update = eqx.filter_jit(plus.update)
    updates, _ = update(grads, plus.init(trainable), trainable)
    assert jnp.all(updates.layers[0].lora_A == -1) and jnp.all(updates.layers[0].lora_B == -16)
    assert jnp.all(updates.layers[1].weight == -2)

    def decayed(params):
        return jax.tree.map(lambda label: label != "lora_B", lora_param_labels(params))

    decay = optax.add_decayed_weights(1.0, mask=decayed)
    moved, _ = decay.update(grads, decay.init(trainable), trainable)
    assert jnp.array_equal(moved.layers[0].lora_B, grads.layers[0].lora_B)
    assert jnp.allclose(moved.layers[0].lora_A, 1 + trainable.layers[0].lora_A)
