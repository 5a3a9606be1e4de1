"""The backward pass keeps codes, as the compiled step shows."""

import math
import re

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import pytest

from jno.lora import apply_lora, lora_trainable_filter
from jno_lora_quantized import quantize
from jno_lora_quantized._array import _encode
from jno_lora_quantized._schemes import scheme_named

SIZE, DEPTH, BATCH = 256, 6, 8


def compiled_step(model, wrapper):
    adapted = apply_lora(model, 4, key=jr.key(1), wrapper=wrapper)
    trained, frozen = eqx.partition(adapted, lora_trainable_filter(adapted))
    arrays, static = eqx.partition(frozen, eqx.is_array)

    def step(trained, arrays, x):
        def loss(trained):
            return jnp.mean(jax.vmap(eqx.combine(trained, arrays, static))(x) ** 2)

        return jax.tree.map(lambda a, g: a - 0.1 * g, trained, jax.grad(loss)(trained))

    return jax.jit(step).lower(trained, arrays, jnp.ones((BATCH, SIZE))).compile()


def layers(depth):
    return [
        part
        for key in jr.split(jr.key(0), depth)
        for part in (eqx.nn.Linear(SIZE, SIZE, key=key), eqx.nn.Lambda(jnp.tanh))
    ]


@pytest.mark.parametrize(("wrapper", "scheme"), [("lora", "nf4"), ("dora", "int8")])
def test_one_decoded_weight_at_a_time(wrapper, scheme):
    model = eqx.nn.Sequential(layers(DEPTH))
    plain, coded = (
        compiled_step(m, wrapper).memory_analysis().temp_size_in_bytes
        for m in (model, quantize(model, scheme))
    )
    assert coded <= plain + 1.1 * SIZE * SIZE * 4


def test_no_copy_of_the_whole_model():
    few, many = (
        compiled_step(quantize(eqx.nn.Sequential(layers(depth))), "lora") for depth in (2, DEPTH)
    )
    # A layer more keeps its input and what its adapter needs, and no decoded weight.
    grown = many.memory_analysis().temp_size_in_bytes - few.memory_analysis().temp_size_in_bytes
    assert grown <= 4 * 0.25 * SIZE * SIZE * 4
    # No array of the program has the numbers of two weights, or the shape of a stack of them.
    shapes = re.findall(r"(?:f32|bf16|f16)\[([0-9,]+)\]", many.as_text())
    sizes = [math.prod(map(int, shape.split(","))) for shape in shapes]
    assert SIZE * SIZE <= max(sizes) < 2 * SIZE * SIZE


def test_encoding_holds_no_copies():
    # One scaled copy, and codes before two of them share a byte.
    matrix = jax.ShapeDtypeStruct((256, 256), jnp.float32)
    for scheme in ("nf4", "int8"):
        compiled = _encode.lower(matrix, scheme=scheme_named(scheme)).compile()
        assert compiled.memory_analysis().temp_size_in_bytes <= 1.3 * 256 * 256 * 4
