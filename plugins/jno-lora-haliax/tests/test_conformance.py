"""Adapters of each of Haliax's layers keep every promise, as the kit checks it."""

import haliax as hax
import haliax.nn as hnn
import pytest
from tests.pairs import methods_on
from zoo_cases import OPTIONS, check_kind, parameter_count

from jno_lora_haliax import adapters
from jno_lora_testing import WrapperCase, parametrize_with_checks

R = 2
IN, HEADS, SIZE, BATCH = hax.make_axes(embed=4, heads=2, size=3, batch=3)
VOCAB, CHANNELS, WIDTH = hax.make_axes(vocab=7, channels=5, width=6)


def normal(*axes):
    return lambda key: (hax.random.normal(key, axes),)


def indices(key):
    return (hax.random.randint(key, (BATCH,), 0, VOCAB.size),)


# By name: the layer, its inputs, and the sizes of its matrix.
LAYERS = {
    "Linear": (
        lambda key: hnn.Linear.init((IN, CHANNELS), (HEADS, SIZE), key=key, out_first=False),
        normal(CHANNELS, BATCH, IN),
        (6, 20),
    ),
    "Embedding": (lambda key: hnn.Embedding.init(VOCAB, (HEADS, SIZE), key=key), indices, (6, 7)),
    "Conv": (
        lambda key: hnn.Conv.init((WIDTH,), IN, CHANNELS, 3, key=key),
        normal(BATCH, WIDTH, IN),
        (5, 12),
    ),
}


def case_of(method, kind):
    layer, inputs, (out, inp) = LAYERS[kind]
    return WrapperCase(
        getattr(adapters, f"{method}Haliax{kind}"),
        base=layer,
        inputs=inputs,
        call=lambda layer, x: layer(x).array,
        rank=R,
        options=OPTIONS.get(method, {}),
        parameters=parameter_count(method, R, out, inp),
        name=f"{method}Haliax{kind}",
    )


@pytest.mark.slow
@parametrize_with_checks([case_of("LoRA", "Linear")])
def test_conformance(check):
    check()


CASES = [
    pytest.param(method, kind, marks=[] if method == "LoRA" else pytest.mark.slow)
    for kind in LAYERS
    for method in methods_on(f"Haliax{kind}")
]


@pytest.mark.parametrize(("method", "kind"), CASES, ids=lambda name: name)
def test_the_checks_of_the_kind(method, kind):
    check_kind(case_of(method, kind))
