"""The layer on which the kit checks every method. Change `base` and `inputs` with it."""

import jax

import jno_lora_chebyshev_kan
from jno_lora_testing import WrapperCase
from jno_lora_zoo import adapters_defined_in

# Methods of different structure get all checks, and the others the checks that compare values.
STRUCTURES = ("LoRA", "DoRA", "EVA")
VALUES = ("identity-at-init", "merge-equals-call", "gradients", "state-round-trip")

CASES = [
    WrapperCase(
        wrapper,
        base=lambda key: jno_lora_chebyshev_kan.ChebyshevKAN(6, 4, 2, key=key),
        inputs=lambda key: (jax.random.normal(key, (6,)),),
        checks=("*",) if wrapper.method.__name__ in STRUCTURES else VALUES,
    )
    for wrapper in adapters_defined_in(jno_lora_chebyshev_kan)
]
