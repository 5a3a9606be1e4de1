"""Every recurrent adapter keeps every promise, as the kit checks it."""

import equinox as eqx
import jax
import pytest
from zoo_cases import OPTIONS, WHOLE_KIT, check_kind, kind_only, parameter_count

from jno.lora.testing import WrapperCase, parametrize_with_checks
from jno_lora_zoo import adapters

INPUTS, HIDDEN, R = 4, 3, 2


def gru(key):
    return eqx.nn.GRUCell(INPUTS, HIDDEN, key=key)


def lstm(key):
    return eqx.nn.LSTMCell(INPUTS, HIDDEN, use_bias=False, key=key)


def step(key):
    return jax.random.normal(key, (INPUTS,)), jax.random.normal(key, (HIDDEN,))


def step_with_memory(key):
    x, h = step(key)
    return x, (h, jax.random.normal(key, (HIDDEN,)))


def case_of(method, base, inputs, gates):
    return WrapperCase(
        getattr(adapters, f"{method}Recurrent"),
        base=base,
        inputs=inputs,
        rank=R,
        options=OPTIONS.get(method, {}),
        # Of the two weights side by side.
        parameters=parameter_count(method, R, gates * HIDDEN, INPUTS + HIDDEN),
        name=f"{method}-{base.__name__}",
    )


# On the GRU; what the LSTM adds (a tuple as its state, no bias) does not depend on the method.
CASES = [
    *(case_of(method, gru, step, 3) for method in WHOLE_KIT),
    *(case_of(method, lstm, step_with_memory, 4) for method in ("LoRA", "DoRA")),
]


@parametrize_with_checks(CASES)
def test_conformance(check):
    check()


@pytest.mark.parametrize("method", kind_only("Recurrent"))
def test_other_methods(method):
    check_kind(case_of(method, gru, step, 3))
