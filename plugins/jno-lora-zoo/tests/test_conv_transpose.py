"""Transposed convolutions: a column of the zoo that nobody gets without asking."""

import math

import equinox as eqx
import jax
import pytest
from zoo_cases import (
    OPTIONS,
    WHOLE_KIT,
    check_kind,
    kind_only,
    parameter_count,
)

import jno_lora_zoo
from jno.lora import apply_lora, merge_lora, plan_lora
from jno.lora.testing import WrapperCase, cyclic_shift, parametrize_with_checks

R = 3


def grouped(key):
    return eqx.nn.ConvTranspose2d(4, 6, (3, 2), stride=(2, 1), padding=1, groups=2, key=key)


def periodic(key):
    settings = {"stride": (2, 1), "padding": "SAME", "padding_mode": "CIRCULAR", "groups": 2}
    return eqx.nn.ConvTranspose2d(4, 6, (3, 2), **settings, key=key)


SHIFTS = (
    cyclic_shift(-2, steps=(1, 2), name="cyclic shift of rows"),
    cyclic_shift(-1, name="cyclic shift of columns"),
)


def case_of(method, base=grouped, symmetries=()):
    return WrapperCase(
        getattr(jno_lora_zoo, f"{method}ConvTranspose"),
        base=base,
        inputs=lambda key: (jax.random.normal(key, (4, 4, 5)),),
        rank=R,
        options=OPTIONS.get(method, {}),
        parameters=parameter_count(method, R, 6, 12),
        symmetries=symmetries,
    )


@parametrize_with_checks(map(case_of, WHOLE_KIT))
def test_conformance(check):
    check()


@pytest.mark.parametrize("method", kind_only("ConvTranspose"))
def test_other_methods(method):
    check_kind(case_of(method, periodic, SHIFTS))


def test_it_is_chosen_by_name_by_variant_and_by_auto_but_not_by_default(getkey):
    model = {"up": eqx.nn.ConvTranspose1d(3, 4, 2, key=getkey()), "head": linear(getkey())}
    chosen = {
        str(wrappers): {row.path: row.wrapper.__name__ for row in plan.wrapped}
        for wrappers in (None, "LoRAConvTranspose", "dora", "auto")
        for plan in [plan_lora(model, 2, wrapper=wrappers)]
    }
    assert chosen == {
        "None": {"head": "LoRALinear"},
        "LoRAConvTranspose": {"up": "LoRAConvTranspose"},
        "dora": {"up": "DoRAConvTranspose", "head": "DoRALinear"},
        "auto": {"up": "LoRAConvTranspose", "head": "LoRALinear"},
    }


def linear(key):
    return eqx.nn.Linear(4, 4, key=key)


def test_a_stack_is_adapted_slice_by_slice(getkey):
    keys = jax.random.split(getkey(), (2, 3))
    make = eqx.filter_vmap(eqx.filter_vmap(lambda key: eqx.nn.ConvTranspose1d(3, 4, 2, key=key)))
    stack = make(keys)
    adapted = apply_lora(stack, 2, 4.0, key=getkey(), wrapper="LoRAConvTranspose")
    assert adapted.lora_A.shape == (2, 3, 2, math.prod((3, 2)))
    assert eqx.tree_equal(merge_lora(adapted), stack)
