"""Every adapter of the zoo keeps every promise, as the kit checks it."""

import dataclasses

import equinox as eqx
import jax
import pytest
from zoo_cases import ALL_METHODS, LATER, METHODS, OPTIONS, check_kind, parameter_count

import jno_lora_zoo
from jno.lora.testing import WrapperCase, parametrize_with_checks, standard_cases

RANK = 3


def linear(key):
    return eqx.nn.Linear(7, 5, key=key)


def grouped_conv(key):
    return eqx.nn.Conv2d(
        4, 8, (3, 2), stride=(2, 1), padding="SAME", dilation=(1, 2), groups=2, key=key
    )


def conv(key):
    return eqx.nn.Conv1d(3, 5, 3, padding=2, padding_mode="CIRCULAR", use_bias=False, key=key)


BASES = [
    ("Linear", linear, (7,), (5, 7), ALL_METHODS),
    ("Conv", grouped_conv, (4, 6, 5), (8, 12), METHODS),
    ("Conv", conv, (3, 8), (5, 9), METHODS),
]


def case(method, kind, base, shape, matrix):
    return WrapperCase(
        getattr(jno_lora_zoo, method + kind),
        base=base,
        inputs=lambda key: (jax.random.normal(key, shape),),
        rank=RANK,
        options=OPTIONS.get(method, {}),
        parameters=parameter_count(method, RANK, *matrix),
        name=f"{method}-{base.__name__}",
    )


def further_linear_cases(method):
    """Layers of other shapes, for the checks that compare values."""
    _, *further = standard_cases(
        getattr(jno_lora_zoo, f"{method}Linear"),
        ["Linear"],
        parameters=lambda layer, rank: parameter_count(method, rank, *layer.weight.shape),
    )
    return [dataclasses.replace(case, options=OPTIONS.get(method, {})) for case in further]


CASES = [case(method, *base) for *base, methods in BASES for method in methods]
FURTHER = [case for method in ALL_METHODS for case in further_linear_cases(method)]


@parametrize_with_checks([*CASES, *FURTHER])
def test_conformance(check):
    check()


# The later methods use the same operations of a convolution.
@pytest.mark.parametrize("method", LATER)
def test_later_methods_on_convolutions(method):
    check_kind(case(method, *BASES[1][:-1]))
