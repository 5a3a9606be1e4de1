"""Each layer's adapter depends on the key and on its own path, and on nothing beside it."""

import jax
import numpy as np
from hypothesis import given, strategies as st

from jno.lora import Registry, apply_lora, plan_lora

from .odd_nodes import Node, NodeAdapter
from .random_calls import ATTENTION, BY_METHOD
from .random_models import examples, layer, models
from .trees import adapters, same

KINDS = (
    *("linear", "no bias", "conv", "stack", "stack of containers", "duck conv", "embedding"),
    *("attention", "norm", "bfloat16 linear", "NumPy linear"),
)
MODELS = models(*KINDS, sure=["linear", "conv", "attention"])
HOW = st.sampled_from([*BY_METHOD, *ATTENTION])
ADDED = ["linear", "conv", "stack", "norm"]


@examples(20)
@given(
    model=MODELS,
    how=HOW,
    added=st.lists(st.sampled_from(ADDED), min_size=1, max_size=3),
    seed=st.integers(0, 9),
)
def test_a_layer_more_or_a_target_leaves_every_other_adapter_bit_for_bit(model, how, added, seed):
    rng = np.random.default_rng(seed)
    call = dict(key=jax.random.key(seed), **how.call)
    before = {"model": model, "z": layer("linear", rng)}
    # Before the others and after them, in the order of the tree.
    more = [layer(kind, rng) for kind in added]
    after = {"a": more, **before, "zz": more}
    alone = adapters(apply_lora(before, 2, 3.0, **call))
    beside = adapters(apply_lora(after, 2, 3.0, **call))
    fewer = adapters(apply_lora(before, 2, 3.0, target="z", **call))
    is_adapted = any(cls.applies_to(node) for cls in how.classes for node in more)
    assert len(beside) > len(alone) if is_adapted else beside.keys() == alone.keys()
    assert fewer
    for path, adapter in [*alone.items(), *fewer.items()]:
        assert same(beside[path], adapter)


def test_a_container_claimed_by_auto_hides_nothing_that_another_plugin_took():
    class AutoNode(NodeAdapter):
        auto = True

    embedding = layer("embedding", np.random.default_rng(0))
    model = Node(embedding, None, jax.numpy.ones(2), "node")
    fewer, more = Registry(), Registry()
    more.register(AutoNode)
    before = plan_lora(model, 2, wrapper="auto", registry=fewer)
    assert [row.path for row in before.wrapped] == ["left"]
    after = plan_lora(model, 2, wrapper="auto", registry=more)
    assert [(row.path, row.wrapper) for row in after.wrapped] == [
        (row.path, row.wrapper) for row in before.wrapped
    ]
