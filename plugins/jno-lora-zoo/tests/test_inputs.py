"""Whatever input the layer itself takes, the adapter and the merged layer agree on it."""

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest

import jno_lora_zoo
from jno.lora.testing import WrapperCase

METHODS = ["LoRA", "DoRA", "PiSSA", "LoRAXS", "VeRA", "IA3", "LoKr", "OFT"]
INPUTS = {
    "integers": lambda: jnp.array([1, 2, 3, 4]),
    "bools": lambda: jnp.array([True, False, True, True]),
    "a narrower dtype": lambda: jnp.array([0.1, 0.2, 0.3, 0.4], jnp.bfloat16),
    "a matrix of columns": lambda: jnp.arange(16.0).reshape(4, 4) / 7,
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("what", INPUTS)
def test_adapter_and_merged_layer_agree(method, what):
    x = INPUTS[what]()
    case = WrapperCase(
        getattr(jno_lora_zoo, f"{method}Linear"),
        base=lambda key: eqx.nn.Linear(4, 4, use_bias=False, key=key),
        inputs=lambda key: (x,),
    )
    with jax.numpy_dtype_promotion("standard"):
        trained = case.make_trained()
        assert jnp.allclose(trained(x), trained.merge()(x), rtol=1e-5, atol=1e-5)
        assert jnp.allclose(case.make()(x), case.make_base()(x), rtol=1e-5, atol=1e-5)
