"""Every embedding adapter keeps every promise, as the kit checks it."""

import equinox as eqx
import jax
from zoo_cases import ALL_METHODS, parameter_count

from jno.lora.testing import WrapperCase, parametrize_with_checks
from jno_lora_embedding import adapters

NUM, DIM, R = 11, 6, 4


@parametrize_with_checks(
    WrapperCase(
        getattr(adapters, f"{method}Embedding"),
        base=lambda key: eqx.nn.Embedding(NUM, DIM, key=key),
        inputs=lambda key: (jax.random.randint(key, (), 0, NUM),),
        rank=R,
        parameters=parameter_count(method, R, DIM, NUM),
    )
    for method in ALL_METHODS
)
def test_conformance(check):
    check()
