"""The recipe for a quantised language model: started, trained, saved, loaded and merged."""

import dataclasses

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import pytest

from ._example import load, skip_without

NAME = "quantized_llm"


@pytest.fixture
def example(monkeypatch):
    skip_without(
        {"eqx-zoo": "eqx_zoo", "jno-lora-quantized": "jno_lora_quantized", "optax": "optax"}
    )
    module = load(NAME)
    small = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "head_dim": 16}
    monkeypatch.setattr(module, "QWEN3", dataclasses.replace(module.QWEN3, **small))
    monkeypatch.setattr(module, "LENGTH", 16)
    return module


def test_the_whole_script(example):
    results = example.main(["--quick"])
    adapted, merged, losses = results["adapted"], results["merged"], results["losses"]
    layer = adapted.model.layers[1].mlp.up_proj
    assert layer.base.weight.code == "nf4" and layer.base.weight.dtype == jnp.bfloat16
    assert eqx.tree_equal(results["loaded"], adapted)
    assert losses[-2] < losses[0] - 0.5
    # The merged weights are rounded to bfloat16.
    np.testing.assert_allclose(losses[-1], losses[-2], rtol=0.01)
    assert merged.model.layers[1].mlp.up_proj.weight.dtype == jnp.bfloat16
    plain, started = results["errors"]
    assert started.relative < 0.9 * plain.relative
    memory = results["memory"]
    assert memory["LoRA, nf4 base"][0] < 0.3 * memory["LoRA, bfloat16 base"][0]
