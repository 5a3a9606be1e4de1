"""Methods of the zoo as functions of a parameter, on a linear layer."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tests.pairs import ALL

from jno.lora import Net, SelectionError
from jno_lora_conditional import Conditional, Powers
from jno_lora_conditional.testing import check_conditional
from jno_lora_zoo.methods import METHODS

REFUSED = {
    "DeLoRA": "has the same update for lora_B of every size",
    "TiedLoRA": "trains an array that several layers share",
    "VBLoRA": "trains an array that several layers share",
}
# Start from a decomposition of the weight, or with reflections that cancel up to a rounding.
ROUNDED_START = {"PiSSA", "OLoRA", "CorDA", "MiLoRA", "LoRAGA", "LoRAOne", "LoRANull", "HRA"}
# Starts exactly, but divides by a norm when it is called.
ROUNDED_CALL = {"DoRA"}

# One method of each way to start, to move and to be refused; `make test-all` runs all methods.
CHOSEN = ("LoRA", "AdaLoRA", "OFT", "EVA", "PiSSA", "HRA", "DoRA", *REFUSED)
RUN = [method for method in METHODS if ALL or method.__name__ in CHOSEN]

LAYER = eqx.nn.Linear(4, 6, key=jax.random.key(0))
X = jnp.array([0.3, -0.5, 0.8, 1.1])


def statistics():
    rng = np.random.default_rng(0)
    return {
        "": {
            "input_covariance": jnp.eye(4) + 0.3,
            "input_mean": jnp.full(4, 0.1),
            "gradient": jnp.asarray(rng.normal(size=(6, 4)), jnp.float32),
        }
    }


@pytest.mark.parametrize("method", RUN, ids=lambda method: method.__name__)
def test_laws(method):
    name = method.__name__
    if name in REFUSED:
        net = Net(LAYER).freeze().lora(rank=2, wrapper=method.variant)
        with pytest.raises(SelectionError, match=f"<root>: {name}Linear {REFUSED[name]}"):
            Conditional(net, Powers(source=0.0))
        return
    check_conditional(
        method.variant,
        LAYER,
        X,
        statistics=statistics(),
        film=True,  # test_layers has the laws without it
        exact=name not in ROUNDED_START,
        rounding=1e-6 if name in ROUNDED_START | ROUNDED_CALL else None,
    )
