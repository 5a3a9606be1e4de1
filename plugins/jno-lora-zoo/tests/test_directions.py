"""AdaLoRA, DeLoRA and TinyLoRA: what the law in NumPy does not show of them."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from zoo_cases import assert_close, perturb, shapes_in_jaxpr

from jno_lora_zoo import AdaLoRALinear, DeLoRALinear, TinyLoRALinear


def linear(inputs=12, outputs=10):
    return eqx.nn.Linear(inputs, outputs, key=jax.random.key(0))


def built(cls, layer, rank=2, alpha=3.0, **options):
    return cls(layer, rank, alpha, key=jax.random.key(1), **options)


@pytest.mark.parametrize("cls", [AdaLoRALinear, DeLoRALinear, TinyLoRALinear])
def test_the_forward_pass_forms_nothing_as_large_as_the_weight(cls):
    wrapper = perturb(built(cls, linear()))
    shapes = shapes_in_jaxpr(lambda w, x: w(x), wrapper, jnp.ones(12))
    large = {shape for shape in shapes if np.prod(shape, dtype=int) >= 120}
    assert shapes and not large


def test_the_start_of_adalora_is_close_to_orthonormal():
    wrapper = built(AdaLoRALinear, linear(2000, 3000), rank=4)
    for gram in (wrapper.lora_A @ wrapper.lora_A.T, wrapper.lora_B.T @ wrapper.lora_B):
        assert np.max(np.abs(np.asarray(gram) - np.eye(4))) < 0.1


def test_delora_starts_at_alpha_and_keeps_the_norms_if_the_base_changes():
    layer = linear()
    wrapper = built(DeLoRALinear, layer, alpha=7.0)
    assert float(wrapper.strength) == 7.0
    assert_close(wrapper.norms, np.linalg.norm(np.asarray(layer.weight), axis=0), 1e-6)
    other = eqx.tree_at(lambda layer: layer.weight, layer, 2 * layer.weight)
    moved = perturb(wrapper)
    elsewhere: Any = DeLoRALinear.from_state(other, moved.state(), 2, 7.0)
    update = moved.merge().weight - layer.weight
    assert_close(elsewhere.merge().weight - other.weight, update, 1e-5)
    with pytest.raises(ValueError, match="with alpha 0 nothing would train"):
        built(DeLoRALinear, linear(), alpha=0.0)


def test_a_column_of_zeros_stays_zero_under_delora_and_derivatives_are_finite():
    layer = eqx.tree_at(lambda layer: layer.weight, linear(), jnp.eye(10, 12))
    wrapper = perturb(built(DeLoRALinear, layer))
    changed = np.any(np.asarray(wrapper.merge().weight - layer.weight) != 0, axis=0)
    assert list(changed) == [True] * 10 + [False] * 2
    zeros = eqx.tree_at(lambda layer: layer.weight, linear(), jnp.zeros((10, 12)))
    wrapper = built(DeLoRALinear, zeros)
    wrapper = eqx.tree_at(lambda w: w.lora_A, wrapper, jnp.zeros((2, 12)))
    gradient = eqx.filter_grad(lambda w: jnp.sum(jnp.sin(w(jnp.ones(12)))))(wrapper)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


def test_tinylora_trains_u_numbers_which_the_state_implies():
    for u in (1, 13):
        wrapper = built(TinyLoRALinear, linear(), u=u)
        assert wrapper.v.shape == (u,) and wrapper.P.shape == (u, 2, 2)
        assert TinyLoRALinear.options_of(wrapper.state()) == {"u": u}
    for u in (0, 2.0, True):
        with pytest.raises(ValueError, match="`u` must be a whole number of 1 or more, but is"):
            built(TinyLoRALinear, linear(), u=u)
