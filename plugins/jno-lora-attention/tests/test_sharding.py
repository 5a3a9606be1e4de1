"""The arrays of an adapter lie on the mesh as the projections do."""

import equinox as eqx
import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P

from jno.lora import apply_lora, merge_lora, unwrap_lora
from jno_lora_attention import IA3Attention, LoRAAttention, PrefixAttention

MESH = Mesh(np.array(jax.devices()[:8]).reshape(2, 4), ("x", "y"))


def put(linear, weight, bias):
    arrays = [
        jax.device_put(array, NamedSharding(MESH, spec))
        for array, spec in ((linear.weight, weight), (linear.bias, bias))
    ]
    return eqx.tree_at(lambda m: (m.weight, m.bias), linear, arrays)


def attention(key, heads=4, stack=()):
    """Attention in tensor parallel: heads over `y`, the output projection's inputs over `y`."""

    def make(key):
        biases = {f"use_{name}_bias": True for name in ("query", "key", "value", "output")}
        return eqx.nn.MultiheadAttention(heads, 8, key=key, **biases)

    layer = make(key) if not stack else eqx.filter_vmap(make)(jax.random.split(key, 2))

    def projections(m):
        return m.query_proj, m.key_proj, m.value_proj, m.output_proj

    *inner, output = projections(layer)
    other = None if "x" in stack else "x"
    inner = [put(linear, P(*stack, "y", other), P(*stack, "y")) for linear in inner]
    output = put(output, P(*stack, other, "y"), P(*stack, other))
    return eqx.tree_at(projections, layer, (*inner, output))


def adapt(layer, wrapper, **options):
    key = jax.random.key(1)
    return apply_lora(layer, 2, 2.0, key=key, wrapper=wrapper, options=options)


def assert_lies(array, spec):
    assert array.sharding.is_equivalent_to(NamedSharding(MESH, spec), array.ndim)


@pytest.mark.parametrize("stack", [(), (None,), ("x",)], ids=["one", "stack", "cut stack"])
def test_a_prefix_lies_as_the_heads_do(stack, getkey):
    wrapper = adapt(attention(getkey(), stack=stack), PrefixAttention)
    assert_lies(wrapper.prefix_keys, P(*stack, None, "y", None))
    assert_lies(wrapper.prefix_values, P(*stack, None, "y", None))
    assert_lies(wrapper.gate, P(*stack, "y"))
    if not stack:  # heads that are cut have a replicated prefix
        wrapper = adapt(attention(getkey(), heads=2), PrefixAttention)
        for array in (wrapper.prefix_keys, wrapper.prefix_values, wrapper.gate):
            assert_lies(array, P())


def test_factors_and_scales_lie_as_their_projections_do(getkey):
    wrapper = adapt(attention(getkey()), LoRAAttention, projections="qo")
    assert_lies(wrapper.lora_A["q"], P(None, "x"))
    assert_lies(wrapper.lora_B["q"], P("y", None))
    assert_lies(wrapper.lora_A["o"], P(None, "y"))
    assert_lies(wrapper.lora_B["o"], P("x", None))
    wrapper = adapt(attention(getkey()), IA3Attention)
    assert_lies(wrapper.scale["k"], P("y"))
    assert_lies(wrapper.scale["v"], P("y"))


@pytest.mark.parametrize("wrapper", [LoRAAttention, IA3Attention])
def test_merged_and_unwrapped_layers_lie_where_the_layer_was(wrapper, getkey):
    layer = attention(getkey())
    adapted = adapt(layer, wrapper)
    for plain in (merge_lora(adapted), unwrap_lora(adapted)):
        for new, old in zip(jax.tree.leaves(plain), jax.tree.leaves(layer), strict=True):
            if eqx.is_array(old):
                assert_lies(new, old.sharding.spec)
