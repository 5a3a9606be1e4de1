"""Filters mark leaves by where they are: what trains, what an adapter keeps, what is outside."""

import equinox as eqx
import jax
import jax.tree_util as jtu
import pytest
from hypothesis import given, strategies as st

from jno.lora import Net, apply_lora, lora_trainable_filter, partial_lora_trainable_filter

from .naive import leaves_of, trainable
from .random_models import METHODS, NodeAdapter, adapters_of, examples, models

WRAPPERS = st.sampled_from([*map(adapters_of, METHODS), [NodeAdapter, *adapters_of("LoRA")]])
FILTERS = {
    lora_trainable_filter: {"adapter"},
    partial_lora_trainable_filter: {"adapter", "outside"},
}


def adapted(model, wrappers):
    if not any(
        cls.applies_to(node)
        for cls in wrappers
        for node in jax.tree.leaves(model, is_leaf=cls.applies_to)
    ):
        return model
    return apply_lora(model, 2, 3.0, key=jax.random.key(0), wrappers=wrappers)


def selected(model, mask):
    """The paths of the leaves that a mask selects; it must have the structure of the model."""
    assert jtu.tree_structure(mask) == jtu.tree_structure(model)
    bools = jtu.tree_leaves(mask)
    assert all(type(leaf) is bool for leaf in bools)
    return {path for path, leaf in zip(leaves_of("", model), bools, strict=True) if leaf}


MODELS = models(
    *("linear", "no bias", "conv", "stack", "duck", "norm", "tied", "embedding", "adapted")
)


@pytest.mark.filterwarnings("ignore::jno.lora.JnoLoraWarning")  # all may be adapted already
@examples(80)
@given(model=MODELS, wrappers=WRAPPERS)
def test_filters_are_what_a_naive_walk_marks(model, wrappers):
    model = adapted(model, wrappers)
    roles = trainable(model)
    for filter_of, wanted in FILTERS.items():
        expected = {path for path, role in roles.items() if role in wanted}
        assert selected(model, filter_of(model)) == expected


@pytest.mark.filterwarnings("ignore::jno.lora.JnoLoraWarning")
@examples(40)
@given(model=MODELS, wrappers=WRAPPERS)
def test_filters_part_a_model_and_put_it_together_again(model, wrappers):
    model = adapted(model, wrappers)
    for filter_of in FILTERS:
        mask = filter_of(model)
        one, other = eqx.partition(model, mask)
        count = len(jtu.tree_leaves(one)) + len(jtu.tree_leaves(other))
        assert count == len(jtu.tree_leaves(model))
        assert all(map(eqx.is_inexact_array, jtu.tree_leaves(one)))
        again = eqx.combine(one, other)
        assert jtu.tree_structure(again) == jtu.tree_structure(model)
        pairs = zip(jtu.tree_leaves(again), jtu.tree_leaves(model), strict=True)
        assert all(x is y for x, y in pairs)


@pytest.mark.filterwarnings("ignore::jno.lora.JnoLoraWarning")
@examples(40)
@given(model=MODELS, controls=st.lists(st.sampled_from(["freeze", "unfreeze"]), max_size=2))
def test_a_nets_parts_are_its_model(model, controls):
    net = Net(adapted(model, adapters_of("DoRA")))
    for control in controls:
        getattr(net, control)()
    roles = trainable(net.module)
    expected = (
        set() if controls[-1:] == ["freeze"] else {p for p, r in roles.items() if r != "frozen"}
    )
    assert selected(net.module, net.trainable) == expected
    before = jtu.tree_leaves(net.module)
    net.update(net.partition()[0])
    assert all(x is y for x, y in zip(before, jtu.tree_leaves(net.module), strict=True))
