"""The product `U v` that a method computes without its matrix is the product of its law."""

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest
from zoo_cases import ALL_METHODS, OPTIONS, assert_close, made, perturb

import jno_lora_zoo
from jno_lora_zoo._scaled import Additive


def has_times(method):
    cls = getattr(jno_lora_zoo, f"{method}Linear")
    return issubclass(cls, Additive) and cls.times is not Additive.times


@pytest.mark.parametrize("shape", [(4, 9), (9, 4), (6, 6)], ids=["wide", "tall", "square"])
@pytest.mark.parametrize("method", [*filter(has_times, ALL_METHODS)])
def test_times_and_column_are_the_law(method, shape):
    outputs, inputs = shape
    layer = eqx.nn.Linear(inputs, outputs, key=jax.random.key(0))
    cls = getattr(jno_lora_zoo, f"{method}Linear")
    adapter = perturb(made(cls, layer, 2, 3.0, key=jax.random.key(1), **OPTIONS.get(method, {})))
    update = adapter.law(layer.weight) - layer.weight
    v = jax.random.normal(jax.random.key(2), (inputs,))
    assert jnp.max(jnp.abs(update)) > 1e-2
    assert_close(adapter.times(shape, v), update @ v, 2e-5)
    if cls.column is not Additive.column:
        assert_close(adapter.column(shape, jnp.asarray(inputs - 1)), update[:, -1], 2e-5)
