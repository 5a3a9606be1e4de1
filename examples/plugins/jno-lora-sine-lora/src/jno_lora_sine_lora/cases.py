"""Layers on which the kit checks the method. Change `law` and `parameters` with it."""

import equinox as eqx
import jax
import numpy as np

import jno_lora_sine_lora
from jno_lora_testing import WrapperCase, standard_cases


def law(adapter):
    """The merged weight, in NumPy. Write it from the paper, not from the code of the method."""
    A, B = np.asarray(adapter.A), np.asarray(adapter.B)
    return np.asarray(adapter.base.weight) + adapter.alpha / len(A) * np.sin(10 * B @ A) / 10


# Layers of several shapes notice a transposed matrix, a missing bias, a wrong scale.
LINEAR_CASES = [
    WrapperCase(
        jno_lora_sine_lora.SineLoRALinear,
        base=lambda key: eqx.nn.Linear(6, 4, key=key),
        inputs=lambda key: (jax.random.normal(key, (6,)),),
        parameters=2 * (6 + 4),
        law=law,
        name="SineLoRALinear-wide",
    ),
    WrapperCase(
        jno_lora_sine_lora.SineLoRALinear,
        base=lambda key: eqx.nn.Linear(3, 5, use_bias=False, key=key),
        inputs=lambda key: (jax.random.normal(key, (3,)),),
        parameters=2 * (3 + 5),
        law=law,
        name="SineLoRALinear-tall",
    ),
    WrapperCase(
        jno_lora_sine_lora.SineLoRALinear,
        base=lambda key: eqx.nn.Linear(4, 4, key=key),
        inputs=lambda key: (jax.random.normal(key, (4,)),),
        rank=3,
        alpha=3.0,
        parameters=3 * (4 + 4),
        law=law,
        name="SineLoRALinear-square",
    ),
]
CASES = [
    *LINEAR_CASES,
    *standard_cases(jno_lora_sine_lora.SineLoRAConv),
    *standard_cases(jno_lora_sine_lora.SineLoRAConvTranspose),
]
