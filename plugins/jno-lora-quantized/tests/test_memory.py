"""The backward pass keeps codes, as the compiled step shows."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import pytest

from jno.lora import apply_lora, lora_trainable_filter
from jno_lora_quantized import quantize

SIZE, DEPTH, BATCH = 256, 16, 8


def temporaries(model, wrapper):
    """The temporary bytes of a training step of the adapters of `model`."""
    adapted = apply_lora(model, 4, key=jr.key(1), wrappers=wrapper)
    trained, frozen = eqx.partition(adapted, lora_trainable_filter(adapted))
    arrays, static = eqx.partition(frozen, eqx.is_array)

    def step(trained, arrays, x):
        def loss(trained):
            return jnp.mean(jax.vmap(eqx.combine(trained, arrays, static))(x) ** 2)

        return jax.tree.map(lambda a, g: a - 0.1 * g, trained, jax.grad(loss)(trained))

    compiled = jax.jit(step).lower(trained, arrays, jnp.ones((BATCH, SIZE))).compile()
    return compiled.memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("wrapper", ["lora", "dora"])
def test_one_decoded_weight_at_a_time(wrapper):
    parts = [
        part
        for key in jr.split(jr.key(0), DEPTH)
        for part in (eqx.nn.Linear(SIZE, SIZE, key=key), eqx.nn.Lambda(jnp.tanh))
    ]
    model = eqx.nn.Sequential(parts)
    decoded = SIZE * SIZE * 4
    bound = temporaries(model, wrapper) + 1.1 * decoded
    for scheme in ("nf4", "int4", "int8", "fp8"):
        assert temporaries(quantize(model, scheme), wrapper) <= bound
