"""Filters mark leaves by where they are: what trains, what an adapter keeps, what is outside."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import pytest
from hypothesis import assume, given, strategies as st

from jno.lora import apply_lora, lora_trainable_filter, partial_lora_trainable_filter

from .naive import leaves_of, trainable
from .odd_nodes import NodeAdapter
from .random_calls import ATTENTION, BY_METHOD, PREFIX, WITH_OPTIONS, Adapters, adapters_of
from .random_models import examples, models
from .trees import adapters

FILTERS = {
    lora_trainable_filter: {"adapter"},
    partial_lora_trainable_filter: {"adapter", "outside"},
}
# As a call with IA3 warns that it leaves weight norms alone.
pytestmark = pytest.mark.filterwarnings("ignore::jno.lora.JnoLoraWarning")

MODELS = models(
    *("linear", "no bias", "conv", "stack", "duck", "norm", "weight norm", "tied", "embedding"),
    *("attention", "cell", "stack of containers", "adapted", "bfloat16 stack", "NumPy linear"),
    sure=["linear", "attention", "NumPy linear", "bfloat16 linear"],
)
HOW = st.sampled_from(
    [
        *(*BY_METHOD, *WITH_OPTIONS, *ATTENTION[::2], PREFIX),
        Adapters("LoRA", (NodeAdapter, *adapters_of("LoRA"))),
    ]
)


def adapted(model, how):
    one = apply_lora(model, 2, 3.0, key=jax.random.key(0), **how.call)
    # Not if all is inside a node that holds an adapter, and that an adapter would take as a whole.
    assume(len(adapters(one)) > len(adapters(model)))
    return one


def selected(model, mask):
    """The paths of the leaves that a mask selects; it must have the structure of the model."""
    assert jtu.tree_structure(mask) == jtu.tree_structure(model)
    bools = jtu.tree_leaves(mask)
    assert all(type(leaf) is bool for leaf in bools)
    return {path for path, leaf in zip(leaves_of("", model), bools, strict=True) if leaf}


@examples(20)
@given(model=MODELS, how=HOW)
def test_filters_are_what_a_naive_walk_marks_and_part_a_model(model, how):
    model = adapted(model, how)
    roles = trainable(model)
    for filter_of, wanted in FILTERS.items():
        mask = filter_of(model)
        assert selected(model, mask) == {path for path, role in roles.items() if role in wanted}
        one, other = eqx.partition(model, mask)
        assert all(jnp.issubdtype(x.dtype, jnp.inexact) for x in jtu.tree_leaves(one))
        again = eqx.combine(one, other)
        assert jtu.tree_structure(again) == jtu.tree_structure(model)
        pairs = zip(jtu.tree_leaves(again), jtu.tree_leaves(model), strict=True)
        assert all(x is y for x, y in pairs)
