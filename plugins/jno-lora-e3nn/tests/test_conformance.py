"""Every adapter of e3nn's layers keeps every promise, as the kit checks it."""

import e3nn_jax as e3nn
import pytest
from zoo_cases import KIND_ONLY, OPTIONS, WHOLE_KIT, check_kind, parameter_count

from jno.lora.testing import WrapperCase, parametrize_with_checks
from jno_lora_e3nn import adapters

R = 2
INPUTS = "5x0e + 3x1o"


def linear(key):
    return e3nn.equinox.Linear(irreps_in=INPUTS, irreps_out="4x0e + 2x1o", biases=True, key=key)


def features(key):
    return (e3nn.normal(INPUTS, key),)


def case_of(method):
    return WrapperCase(
        getattr(adapters, f"{method}E3nn"),
        base=linear,
        inputs=features,
        call=lambda layer, x: layer(x).array,
        rank=R,
        options=OPTIONS.get(method, {}),
        parameters=parameter_count(method, R, 4, 5) + parameter_count(method, R, 2, 3),
    )


@parametrize_with_checks([case_of(method) for method in ("LoRA",)])
def test_conformance(check):
    check()


@pytest.mark.parametrize("method", [*WHOLE_KIT, *KIND_ONLY])
def test_other_methods(method):
    check_kind(case_of(method))
