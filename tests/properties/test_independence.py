"""Each layer's adapter depends on the key and on its own path, and on nothing beside it."""

import sys

import equinox as eqx
import jax
import jax.tree_util as jtu
import numpy as np
import pytest
from hypothesis import given, strategies as st

from jno.lora import Registry, apply_lora

from .random_models import (
    METHODS,
    LoRAWrapper,
    NodeAdapter,
    adapters_of,
    examples,
    layer,
    models,
)

MODELS = models("linear", "no bias", "conv", "stack", "embedding", "norm")


def adapters(model):
    nodes = jtu.tree_leaves_with_path(model, is_leaf=lambda n: isinstance(n, LoRAWrapper))
    return {jtu.keystr(keys): node for keys, node in nodes if isinstance(node, LoRAWrapper)}


def same(one, other):
    return bool(eqx.tree_equal(one, other, typematch=True))


@examples(50)
@given(
    model=MODELS,
    method=st.sampled_from(METHODS),
    added=st.lists(st.sampled_from(["linear", "conv", "stack", "norm"]), min_size=1, max_size=3),
    seed=st.integers(0, 9),
)
def test_a_layer_more_leaves_every_other_adapter_bit_for_bit(model, method, added, seed):
    rng = np.random.default_rng(seed)
    key, wrappers = jax.random.key(seed), adapters_of(method)
    before = {"model": model, "z": layer("linear", rng)}
    # Before the others and after them, in the order of the tree.
    more = [layer(kind, rng) for kind in added]
    after = {"a": more, **before, "zz": more}
    alone = adapters(apply_lora(before, 2, 3.0, key=key, wrappers=wrappers))
    beside = adapters(apply_lora(after, 2, 3.0, key=key, wrappers=wrappers))
    assert alone.keys() < beside.keys() or added == ["norm"] * len(added)
    for path, adapter in alone.items():
        assert same(beside[path], adapter)


@examples(40)
@given(model=MODELS, method=st.sampled_from(METHODS), seed=st.integers(0, 9))
def test_a_target_that_takes_fewer_layers_builds_those_bit_for_bit(model, method, seed):
    rng = np.random.default_rng(seed)
    key, wrappers = jax.random.key(seed), adapters_of(method)
    model = {"model": model, "z": layer("linear", rng)}
    everywhere = adapters(apply_lora(model, 2, 3.0, key=key, wrappers=wrappers))
    only = adapters(apply_lora(model, 2, 3.0, key=key, wrappers=wrappers, target="z"))
    assert only
    for path, adapter in only.items():
        assert same(everywhere[path], adapter)


PLUGIN = """
from {module} import EmbeddingAdapter, NodeAdapter
from jno.lora import hookimpl

class AutoEmbedding(EmbeddingAdapter):
    auto = True

@hookimpl
def jno_lora_wrappers():
    return [AutoEmbedding, NodeAdapter]
"""


@pytest.fixture(scope="module")
def registries(tmp_path_factory):
    """What is installed, and the same with a plugin more, whose adapters take part in "auto"."""
    fewer, more = Registry(), Registry()
    before = {record.distribution for record in fewer.records()}
    where = tmp_path_factory.mktemp("site")
    info = where / "greedy_lora-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: greedy-lora\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[jno.lora]\nmain = greedy_lora_plugin\n")
    plugin = PLUGIN.format(module=NodeAdapter.__module__)
    (where / "greedy_lora_plugin.py").write_text(plugin)
    sys.path.insert(0, str(where))
    try:
        after = {record.distribution for record in more.records()}
    finally:
        sys.path.remove(str(where))
    assert after == before | {"greedy-lora"}
    return fewer, more


@examples(40)
@given(
    model=MODELS, wrapper=st.sampled_from([None, *METHODS, "LoRALinear"]), seed=st.integers(0, 9)
)
def test_a_plugin_more_changes_no_adapter_that_there_was(model, wrapper, seed, registries):
    rng = np.random.default_rng(seed)
    model = {"model": model, "z": layer("linear", rng)}
    wrappers = adapters_of(wrapper) if wrapper in METHODS else wrapper
    fewer, more = (
        apply_lora(model, 2, 3.0, key=jax.random.key(seed), wrappers=wrappers, registry=registry)
        for registry in registries
    )
    assert same(fewer, more)
