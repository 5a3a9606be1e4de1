"""A variant selects the same layers, whatever else is installed."""

import equinox as eqx
import jax.random as jr
import pytest
from tests.pairs import ALL

from jno.lora import Registry, plan_lora
from jno_lora_zoo import IA3, METHODS, DoRA, LoRA, VBLoRA, plugin

ALL_PLUGINS = Registry()
THE_ZOO = Registry(discover=False)
THE_ZOO.register(plugin)

KEY = jr.key(0)
MODEL = {
    "linear": eqx.nn.Linear(6, 4, key=KEY),
    "conv": eqx.nn.Conv2d(6, 4, 3, key=KEY),
    "transpose": eqx.nn.ConvTranspose1d(6, 4, 3, key=KEY),
    "embedding": eqx.nn.Embedding(6, 4, key=KEY),
    "gru": eqx.nn.GRUCell(6, 4, key=KEY),
    "lstm": eqx.nn.LSTMCell(6, 4, key=KEY),
    "attention": eqx.nn.MultiheadAttention(2, 4, key=KEY),
    "normed": eqx.nn.WeightNorm(eqx.nn.Linear(6, 4, key=KEY)),
}
PROJECTIONS = [f"attention/{name}_proj" for name in ("query", "key", "value", "output")]


def wrapped_by(variant, registry):
    plan = plan_lora(MODEL, 2, 4.0, wrapper=variant, registry=registry)
    return {row.path: row.wrapper for row in plan.wrapped}


# LoRA and IA3 are methods of other plugins as well.
METHODS = METHODS if ALL else (LoRA, IA3, DoRA, VBLoRA)


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.variant)
def test_a_method_selects_the_layers_that_it_selects_with_the_zoo_alone(method):
    adapters = wrapped_by(method.variant, ALL_PLUGINS)
    assert adapters == wrapped_by(method.variant, THE_ZOO)
    assert set(adapters) == {"linear", "conv", "transpose", *PROJECTIONS}
    # Embeddings and cells have variants of their own.
    embedding = wrapped_by(f"{method.variant}-embedding", ALL_PLUGINS)
    recurrent = wrapped_by(f"{method.variant}-recurrent", ALL_PLUGINS)
    assert set(embedding) == {"embedding"}
    assert set(recurrent) == {"gru", "lstm"}
    for adapter in {*embedding.values(), *recurrent.values()}:
        assert adapter.method is method
