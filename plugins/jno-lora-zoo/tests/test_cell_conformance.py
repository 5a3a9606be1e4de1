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


@parametrize_with_checks([case_of(method, gru, step, 3) for method in WHOLE_KIT])
def test_conformance(check):
    check()


# The LSTM's tuple of states, and the missing bias, do not depend on the method.
@pytest.mark.parametrize("method", ["LoRA", "DoRA"])
def test_a_long_short_term_memory(method):
    check_kind(case_of(method, lstm, step_with_memory, 4))


@pytest.mark.parametrize("method", kind_only("Recurrent"))
def test_other_methods(method):
    check_kind(case_of(method, gru, step, 3))
