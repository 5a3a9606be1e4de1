"""`disabled` gives the outputs of the layer before adapting, inside `jit`, with every method."""

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from zoo_cases import ALL_METHODS, OPTIONS, made, perturb

import jno_lora_zoo
from jno.lora import LoRAWrapper, disabled

BASE = eqx.nn.Linear(8, 6, key=jr.key(0))
X = jnp.linspace(-1, 1, 8)


@pytest.mark.parametrize("method", ALL_METHODS)
def test_an_adapted_layer_without_its_adapter_is_the_layer(method):
    cls, options = getattr(jno_lora_zoo, method + "Linear"), OPTIONS.get(method, {})
    adapted = perturb(made(cls, BASE, 2, 3.0, key=jr.key(1), **options))
    after, reference = eqx.filter_jit(lambda layer, x: (layer(x), disabled(layer)(x)))(adapted, X)
    before = BASE(X)
    assert not np.allclose(after, before, atol=1e-3)
    if cls.unwrap is LoRAWrapper.unwrap:
        assert np.array_equal(reference, before)
        assert disabled(adapted).weight is BASE.weight  # no copy
    else:  # the adapter replaced the weight, and gives it back up to rounding
        np.testing.assert_allclose(reference, before, atol=1e-6)
