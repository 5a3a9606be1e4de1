"""Attention layers of every form."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest

# Every size differs where the layer allows it, so that no axis passes for another.
FORMS: dict[str, dict[str, Any]] = {
    "plain": {"num_heads": 2, "query_size": 8},
    "biases": {
        "num_heads": 2,
        "query_size": 8,
        "use_query_bias": True,
        "use_key_bias": True,
        "use_value_bias": True,
        "use_output_bias": True,
    },
    "sizes": {
        "num_heads": 3,
        "query_size": 5,
        "key_size": 7,
        "value_size": 6,
        "output_size": 4,
        "qk_size": 2,
        "vo_size": 3,
        "use_value_bias": True,
    },
    "one_head": {"num_heads": 1, "query_size": 6, "use_output_bias": True},
}


@pytest.fixture(params=FORMS)
def attention(request, getkey):
    """One attention layer of each form."""
    return eqx.nn.MultiheadAttention(**FORMS[request.param], key=getkey())


@pytest.fixture
def small(getkey):
    """A self-attention layer, for what does not depend on the form."""
    return eqx.nn.MultiheadAttention(2, 8, use_key_bias=True, key=getkey())


@pytest.fixture
def inputs(getkey):
    """A function: query, key and value of a layer, 4 queries on 5 tokens."""

    def make(layer, dtype=jnp.float32):
        sizes = ((4, layer.query_size), (5, layer.key_size), (5, layer.value_size))
        return tuple(jax.random.normal(getkey(), size).astype(dtype) for size in sizes)

    return make
