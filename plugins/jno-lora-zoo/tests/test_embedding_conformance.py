"""Every embedding adapter keeps every promise, as the kit checks it."""

import dataclasses

import equinox as eqx
import jax
import pytest
from tests.pairs import methods_on
from zoo_cases import OPTIONS, WHOLE_KIT, check_kind, kind_only, parameter_count

from jno.lora.testing import WrapperCase, parametrize_with_checks, standard_cases
from jno_lora_zoo import adapters

NUM, DIM, R = 11, 6, 4


def case_of(method):
    return WrapperCase(
        getattr(adapters, f"{method}Embedding"),
        base=lambda key: eqx.nn.Embedding(NUM, DIM, key=key),
        inputs=lambda key: (jax.random.randint(key, (), 0, NUM),),
        rank=R,
        options=OPTIONS.get(method, {}),
        parameters=parameter_count(method, R, DIM, NUM),
    )


def ends_of(method):
    """The first and the last row, by positive and negative indices."""
    _, ends = standard_cases(getattr(adapters, f"{method}Embedding"))
    return dataclasses.replace(ends, options=OPTIONS.get(method, {}))


@parametrize_with_checks([*map(case_of, WHOLE_KIT), *map(ends_of, methods_on("Embedding"))])
def test_conformance(check):
    check()


@pytest.mark.parametrize("method", kind_only("Embedding"))
def test_other_methods(method):
    check_kind(case_of(method))
