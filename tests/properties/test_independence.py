"""Each layer's adapter depends on the key and on its own path, and on nothing beside it."""

import sys

import jax
import numpy as np
import pytest
from hypothesis import given, strategies as st

from jno.lora import Registry, SelectionError, apply_lora, plan_lora

from .odd_nodes import Node, NodeAdapter, NormAdapter
from .random_calls import ATTENTION, BY_METHOD, METHODS, NAMES, VARIANTS, adapters_of
from .random_models import examples, layer, models
from .trees import adapters, owner, same

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


@examples(10)
@given(part=MODELS, seed=st.integers(0, 9))
def test_a_layer_in_two_places_is_two_layers(part, seed):
    """One object in two places is adapted as copies of it would be, each by a key of its own."""
    key, wrappers = jax.random.key(seed), adapters_of("LoRA")
    shared = {"one": part, "other": part, "arrays": jax.tree.map(lambda x: x, part)}
    apart = jax.tree.map(lambda x: x.copy() if isinstance(x, jax.Array | np.ndarray) else x, shared)
    found = apply_lora(shared, 2, 3.0, key=key, wrapper=wrappers)
    assert same(found, apply_lora(apart, 2, 3.0, key=key, wrapper=wrappers))
    by_path = adapters(found)
    starts = {np.asarray(adapter.lora_A).tobytes() for adapter in by_path.values()}
    assert len(starts) == len(by_path) >= 6


PLUGIN = """
from {module} import Greedy, NodeAdapter
from jno.lora import hookimpl

class DoRALinear(Greedy):
    "It would take the name of another plugin's adapter."
    auto = False

@hookimpl
def jno_lora_wrappers():
    return [Greedy, NodeAdapter, DoRALinear]
"""


@pytest.fixture(scope="module")
def registries(tmp_path_factory):
    """The installed registry, and one with a further plugin, whose adapters take part in "auto"."""
    fewer, more = Registry(), Registry()
    before = {record.distribution for record in fewer.records()}
    where = tmp_path_factory.mktemp("site")
    info = where / "greedy_lora-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: greedy-lora\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[jno.lora]\nmain = greedy_lora_plugin\n")
    plugin = PLUGIN.format(module=NormAdapter.__module__)
    (where / "greedy_lora_plugin.py").write_text(plugin)
    sys.path.insert(0, str(where))
    try:
        after = {record.distribution for record in more.records()}
    finally:
        sys.path.remove(str(where))
    assert after == before | {"greedy-lora"}
    with pytest.raises(SelectionError):
        apply_lora({}, 2, key=jax.random.key(0), wrapper="Greedy", registry=fewer)
    return fewer, more


# The names and variants of what is installed without the plugin.
_INSTALLED = [n for n in (*NAMES, *VARIANTS, *METHODS) if n not in ("NodeAdapter", "test-shift")]
ASKED = st.one_of(
    st.none(),
    st.sampled_from(_INSTALLED),
    st.lists(st.sampled_from([*_INSTALLED, *adapters_of("DoRA")]), min_size=1, max_size=3),
)


@pytest.mark.filterwarnings("ignore::jno.lora.JnoLoraWarning")  # weight norms are left alone
@examples(25)
@given(
    model=MODELS,
    wrapper=st.one_of(ASKED, st.sampled_from(["auto", ["dora", "auto"]])),
    seed=st.integers(0, 9),
)
def test_a_plugin_more_takes_by_auto_only_what_nothing_took(model, wrapper, seed, registries):
    # One layer of each kind that the drawn wrappers adapt.
    rng = np.random.default_rng(seed)
    kinds = ("linear", "conv", "embedding", "attention", "weight norm")
    model = {"norm": model, "z": [layer(kind, rng) for kind in kinds]}
    call = {"key": jax.random.key(seed), "wrapper": wrapper}
    before, after = (adapters(apply_lora(model, 2, 3.0, registry=r, **call)) for r in registries)
    assert before and all(same(after[path], adapter) for path, adapter in before.items())
    new = {path: node for path, node in after.items() if path not in before}
    assert not new or "auto" in wrapper
    assert all(type(node.base).__name__ == "LayerNorm" for node in new.values())
    assert not any(owner(path, before) or owner(path, new.keys() - {path}) for path in new)


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
