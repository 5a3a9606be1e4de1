"""Every adapter of e3nn's layers keeps every promise, as the kit checks it."""

import e3nn_jax as e3nn
import equinox as eqx
import jax
import pytest
from tests.pairs import methods_on
from zoo_cases import OPTIONS, parameter_count

from jno_lora_e3nn import adapters
from jno_lora_testing import WrapperCase, parametrize_with_checks, rotation, run_checks

R = 2
INPUTS, OUTPUTS = "5x0e + 3x1o", "4x0e + 2x1o"
# Layers of one structure hold one `_linear`, which is static and compares by its identity.
TEMPLATE = e3nn.equinox.Linear(
    irreps_in=INPUTS, irreps_out=OUTPUTS, biases=True, key=jax.random.key(0)
)


def linear(key):
    return eqx.tree_at(lambda m: m._weights, TEMPLATE, TEMPLATE._get_weights(key))


def features(key):
    return (e3nn.normal(INPUTS, key),)


def count(method):
    total = parameter_count(method, R, 4, 5) + parameter_count(method, R, 2, 3)
    bank = OPTIONS["VBLoRA"]["vectors"] * OPTIONS["VBLoRA"]["vector_length"]
    return total - bank if method == "VBLoRA" else total  # kept once


def case_of(method):
    return WrapperCase(
        getattr(adapters, f"{method}E3nn"),
        base=linear,
        inputs=features,
        call=lambda layer, x: layer(x).array,
        rank=R,
        options=OPTIONS.get(method, {}),
        parameters=count(method),
        symmetries=[rotation(INPUTS, OUTPUTS)],
    )


@pytest.mark.slow
@parametrize_with_checks([case_of("LoRA")])
def test_conformance(check):
    check()


# What the layer has a part in. The zoo's tests run the other checks for all methods.
CHECKS = ("merge-equals-call", "parameter-count", "symmetries")


@pytest.mark.parametrize(
    "method",
    [
        pytest.param(name, marks=[] if name == "LoRA" else pytest.mark.slow)
        for name in methods_on("E3nn")
    ],
)
def test_other_methods(method):
    for result in run_checks(case_of(method), CHECKS):
        assert result.error is None, result.error
