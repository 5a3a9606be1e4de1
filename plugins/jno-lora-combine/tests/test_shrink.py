"""Adapters without the directions whose gates are zero: what they compute, and what is refused."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tests.core.gated_adapters import Gated
from tests.zoo.combining._tools import layers, relative, trained

from jno.lora import JnoLoraWarning, WrapperError, apply_lora, merge_lora, shrink

GATES = {"convolution": [0, 1, 0], "linear": [1, 0, 1], "stack": [[0, 0, 1], [0, 0, 0]]}


def gated(model, gates=GATES):
    """`model` with AdaLoRA of rank 3, and these entries of `lora_E` at zero."""
    adapted = trained(model, "adalora", 1, rank=3)
    masks = [jnp.asarray(gates[name], jnp.float32) for name in adapted]
    es = [layer.lora_E * mask for layer, mask in zip(adapted.values(), masks, strict=True)]
    return eqx.tree_at(lambda m: [layer.lora_E for layer in m.values()], adapted, es)


def weights(model):
    return {name: np.asarray(layer.weight, np.float64) for name, layer in model.items()}


def test_the_ranks_are_those_that_are_left_and_the_function_is_kept():
    model = gated(layers())
    small = shrink(model)
    assert {name: (type(a).__name__, a.rank) for name, a in small.items()} == {
        "convolution": ("LoRAConv", 1),
        "linear": ("LoRALinear", 2),
        "stack": ("LoRALinear", 1),
    }
    assert small["stack"].lora_A.shape == (2, 1, 4) and small["stack"].lora_B.shape == (2, 3, 1)
    found, expected = weights(merge_lora(small)), weights(merge_lora(model))
    for name in model:
        assert relative(found[name], expected[name]) < 1e-6
    # The directions themselves, and not others of the same product.
    layer, kept = model["linear"], np.array([0, 2])
    rows = layer.scaling * layer.lora_E[kept][:, None] * layer.lora_A[kept]
    np.testing.assert_allclose(small["linear"].lora_A, rows, rtol=1e-6)
    np.testing.assert_array_equal(small["linear"].lora_B, layer.lora_B[:, kept])


def test_a_layer_of_which_nothing_is_left_is_the_plain_layer_bit_for_bit():
    plain = layers()
    off = {name: np.zeros_like(gate) for name, gate in GATES.items()}
    with pytest.warns(JnoLoraWarning, match="Every gate is zero"):
        assert eqx.tree_equal(shrink(gated(plain, off)), plain)
    fresh = apply_lora(plain, 2, key=jax.random.key(0), wrapper="adalora")
    with pytest.warns(JnoLoraWarning, match="Every gate is zero"):
        assert eqx.tree_equal(shrink(fresh), plain)


def test_half_precision_layers_keep_their_dtype():
    dtype = jnp.bfloat16
    model = gated(layers(dtype))
    for name, layer in merge_lora(shrink(model)).items():
        assert layer.weight.dtype == dtype
        expected = np.asarray(merge_lora(model)[name].weight, np.float64)
        assert relative(np.asarray(layer.weight, np.float64), expected) < jnp.finfo(dtype).eps


def test_adapters_without_a_gate_stay_as_they_are():
    model = trained(layers(), "dora", 1, target="linear")
    model = trained(model, "adalora", 2, target="convolution")
    small = shrink(model)
    assert small["linear"] is model["linear"]
    assert type(small["convolution"]).__name__ == "LoRAConv"
    assert eqx.tree_equal(shrink(layers()), layers())


@pytest.mark.parametrize("rank", [2, 9])  # more than the layer allows, too
def test_a_third_party_s_gates_count_alike(rank):
    model = trained({"linear": eqx.nn.Linear(6, 4, key=jax.random.key(0))}, Gated, 1, rank=rank)
    model = eqx.tree_at(lambda m: m["linear"].gate, model, model["linear"].gate.at[0].set(0))
    small = shrink(model)
    assert small["linear"].rank == min(rank - 1, 4)
    found, expected = weights(merge_lora(small)), weights(merge_lora(model))
    assert relative(found["linear"], expected["linear"]) < 1e-5


def test_a_gated_adapter_whose_update_is_not_known_is_told_with_its_path():
    class Hidden(Gated):
        def low_rank_update(self):
            return None

        def __call__(self, x):
            return self.base(x)

        def merge(self):
            return self.base

    model = apply_lora(layers(), 2, key=jax.random.key(0), wrapper=Hidden, target="linear")
    with pytest.raises(WrapperError, match=r"linear \(Hidden\): its update is not known as a"):
        shrink(model)
