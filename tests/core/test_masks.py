"""Masks: bools in the model's structure, of a prefix of it, or a regex on leaf paths."""

import re

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from jno.lora import Net, SelectionError, plan_lora

from .toys import MODEL_LINEARS, Model, ToyLinear, selected, slashed

FIXED = Model(jax.random.key(1))
PATHS = [slashed(keys) for keys, _ in jtu.tree_leaves_with_path(FIXED)]


def chosen(model, mask):
    return [r.path for r in plan_lora(model, 1, wrapper=ToyLinear, mask=mask).wrapped]


def nothing(model):
    return jax.tree.map(lambda _: False, model)


@settings(max_examples=40, deadline=None)
@given(bools=st.lists(st.booleans(), min_size=len(PATHS), max_size=len(PATHS)))
def test_a_layer_is_selected_by_any_of_its_leaves(bools):
    mask = jtu.tree_unflatten(jtu.tree_structure(FIXED), bools)
    true = [path for path, value in zip(PATHS, bools, strict=True) if value]
    expected = [p for p in MODEL_LINEARS if any(leaf.startswith(f"{p}/") for leaf in true)]
    assert chosen(FIXED, mask) == expected


@settings(max_examples=30, deadline=None)
@given(
    pattern=st.sampled_from(["encoder", "weight", "0/bias", "^head", "x$", ".", "bias|temp", "^$"])
)
def test_a_regex_is_searched_in_the_path_of_every_leaf(pattern):
    true = {path for path in PATHS if re.search(pattern, path)}
    expected = [p for p in MODEL_LINEARS if any(leaf.startswith(f"{p}/") for leaf in true)]
    assert chosen(FIXED, pattern) == expected


def test_one_bool_may_stand_for_a_subtree(model):
    mask = eqx.tree_at(lambda m: m.encoder, nothing(model), True)
    assert chosen(model, mask) == ["encoder/0", "encoder/1"]
    assert chosen(model, True) == list(MODEL_LINEARS)
    assert chosen(model, False) == []
    assert chosen({"a": model, "b": model.head}, {"a": False, "b": True}) == ["b"]


def test_a_prefix_bool_reaches_every_leaf_of_its_subtree(model):
    mask = eqx.tree_at(lambda m: (m.encoder, m.head), nothing(model), (True, False))
    net = Net(model).mask(mask).freeze()
    assert selected(net.trainable) == {
        "embedding/weight",
        "head/weight",
        "head/bias",
        "temperature",
    }


@pytest.mark.parametrize("true", [np.True_, jnp.asarray(True), np.asarray(True)])
def test_scalar_bools_of_numpy_and_jax_are_bools(model, true, unchecked):
    assert chosen(model, eqx.tree_at(lambda m: m.head, nothing(model), true)) == ["head"]


@pytest.mark.parametrize("value", [1, "yes", np.ones(2, bool), jnp.ones(())])
def test_a_leaf_that_is_not_a_bool_is_refused_with_its_path(model, value, unchecked):
    mask = eqx.tree_at(lambda m: m.encoder[1].weight, nothing(model), value)
    with pytest.raises(SelectionError, match=r"one bool per leaf.*'encoder/1/weight'.*regex"):
        plan_lora(model, 1, wrapper=ToyLinear, mask=mask)


def test_the_model_itself_is_refused_as_a_mask(model, unchecked):
    with pytest.raises(SelectionError, match=r"one bool per leaf.*at 'embedding/weight'"):
        plan_lora(model, 1, wrapper=ToyLinear, mask=model)


def test_a_leaf_that_only_the_mask_has_is_named(model):
    longer = eqx.tree_at(lambda m: m.encoder, model, [*model.encoder, model.head])
    with pytest.raises(SelectionError) as caught:
        plan_lora(model, 1, wrapper=ToyLinear, mask=nothing(longer))
    message = str(caught.value)
    assert "the mask has a leaf at 'encoder/2/weight', the model has none there" in message
    assert "jax.tree.map(lambda _: False, net.module)" in message


def test_a_leaf_that_only_the_model_has_is_named(model):
    mask = eqx.tree_at(lambda m: m.head.bias, nothing(model), None)
    with pytest.raises(SelectionError, match="the model has a leaf at 'head/bias', the mask has n"):
        plan_lora(model, 1, wrapper=ToyLinear, mask=mask)


def test_a_mask_of_other_static_fields_is_an_error(getkey):
    linear = eqx.nn.Linear(2, 3, key=getkey())
    other = eqx.nn.Linear(3, 3, key=getkey())
    with pytest.raises(SelectionError, match="classes or static fields of the nodes differ"):
        plan_lora(linear, 1, wrapper=ToyLinear, mask=nothing(other))


def test_a_mask_from_before_adapting_does_not_fit_the_adapted_model(model):
    mask = nothing(model)
    net = Net(model).lora(1, wrapper=ToyLinear, target="head")
    with pytest.raises(SelectionError, match=r"mask has another structure.*'head/weight'"):
        net.mask(mask)


def test_an_invalid_regex_is_an_error_at_once(model):
    with pytest.raises(SelectionError, match=r"`mask` is not a valid regex: 'encoder/\['"):
        Net(model).mask("encoder/[")
