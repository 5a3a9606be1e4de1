"""Every embedding adapter keeps every promise, as the kit checks it."""

import math

import equinox as eqx
import jax

from jno.lora.testing import WrapperCase, parametrize_with_checks
from jno_lora_embedding import adapters

NUM, DIM, R = 11, 6, 4
PARAMETERS = {
    "LoRA": R * (NUM + DIM),
    "rsLoRA": R * (NUM + DIM),
    "LoRAFA": R * DIM,
    "DoRA": R * (NUM + DIM) + DIM,
    "PiSSA": R * (NUM + DIM),
    "MiLoRA": R * (NUM + DIM),
    "LoRAXS": R * R,
    "VeRA": DIM + R,
    "IA3": DIM,
    "LoKr": R * R + math.ceil(DIM / R) * math.ceil(NUM / R),
    "OFT": math.ceil(DIM / R) * R * R,
}


@parametrize_with_checks(
    WrapperCase(
        getattr(adapters, f"{method}Embedding"),
        base=lambda key: eqx.nn.Embedding(NUM, DIM, key=key),
        inputs=lambda key: (jax.random.randint(key, (), 0, NUM),),
        rank=R,
        parameters=count,
    )
    for method, count in PARAMETERS.items()
)
def test_conformance(check):
    check()
