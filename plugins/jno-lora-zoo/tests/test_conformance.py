"""Every adapter of the zoo keeps every promise, as the kit checks it."""

import math

import equinox as eqx
import jax

import jno_lora_zoo
from jno.lora.testing import WrapperCase, parametrize_with_checks

RANK = 3


def parameters(method, out, inputs):
    """The documented number of trained parameters."""
    r = min(RANK, out, inputs)
    return {
        "LoRA": r * (inputs + out),
        "rsLoRA": r * (inputs + out),
        "LoRAFA": r * out,
        "DoRA": r * (inputs + out) + out,
        "PiSSA": r * (inputs + out),
        "MiLoRA": r * (inputs + out),
        "LoRAXS": r * r,
        "VeRA": out + RANK,
        "IA3": out,
        "LoKr": r * r + math.ceil(out / r) * math.ceil(inputs / r),
        "OFT": math.ceil(out / min(RANK, out)) * min(RANK, out) ** 2,
    }[method]


def linear(key):
    return eqx.nn.Linear(7, 5, key=key)


def grouped_conv(key):
    return eqx.nn.Conv2d(
        4, 8, (3, 2), stride=(2, 1), padding="SAME", dilation=(1, 2), groups=2, key=key
    )


def conv(key):
    return eqx.nn.Conv1d(3, 5, 3, padding=2, padding_mode="CIRCULAR", use_bias=False, key=key)


BASES = [
    ("Linear", linear, (7,), (5, 7)),
    ("Conv", grouped_conv, (4, 6, 5), (8, 12)),
    ("Conv", conv, (3, 8), (5, 9)),
]
CASES = [
    WrapperCase(
        getattr(jno_lora_zoo, method + kind),
        base=base,
        inputs=lambda key, shape=shape: (jax.random.normal(key, shape),),
        rank=RANK,
        parameters=parameters(method, *matrix),
        name=f"{method}-{base.__name__}",
    )
    for kind, base, shape, matrix in BASES
    for method in (
        *("LoRA", "rsLoRA", "LoRAFA", "DoRA", "PiSSA", "MiLoRA"),
        *("LoRAXS", "VeRA", "IA3", "LoKr", "OFT"),
    )
]


@parametrize_with_checks(CASES)
def test_conformance(check):
    check()
