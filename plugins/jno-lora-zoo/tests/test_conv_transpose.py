"""Transposed convolutions: a column of the zoo that nobody gets without asking."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest
from zoo_cases import METHODS, PARAMETER_COUNT, assert_close

import jno_lora_zoo
from jno.lora import apply_lora, merge_lora, plan_lora
from jno.lora.testing import WrapperCase, parametrize_with_checks

R = 3


def grouped(key):
    return eqx.nn.ConvTranspose2d(4, 6, (3, 2), stride=(2, 1), padding=1, groups=2, key=key)


# Each has one thing that a transposed convolution can do and the others do not.
LAYERS = {
    "plain": lambda key: eqx.nn.ConvTranspose1d(3, 5, 4, key=key),
    "output padding": lambda key: eqx.nn.ConvTranspose1d(
        3, 4, 3, stride=3, padding=1, output_padding=2, use_bias=False, key=key
    ),
    "dilated": lambda key: eqx.nn.ConvTranspose2d(2, 5, (2, 3), dilation=(2, 1), key=key),
    "circular": lambda key: eqx.nn.ConvTranspose1d(
        3, 4, 3, stride=2, padding="SAME", padding_mode="CIRCULAR", key=key
    ),
    "same lower": lambda key: eqx.nn.ConvTranspose1d(2, 3, 4, padding="SAME_LOWER", key=key),
    "generic": lambda key: eqx.nn.ConvTranspose(1, 3, 5, 2, stride=2, key=key),
}


@parametrize_with_checks(
    WrapperCase(
        getattr(jno_lora_zoo, f"{method}ConvTranspose"),
        base=grouped,
        inputs=lambda key: (jax.random.normal(key, (4, 4, 5)),),
        rank=R,
        parameters=PARAMETER_COUNT[method](R, 6, 12),
    )
    for method in METHODS
)
def test_conformance(check):
    check()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", LAYERS)
def test_the_fast_path_is_the_law_and_the_start_the_layer(name, method, getkey):
    layer = LAYERS[name](getkey())
    x = jax.random.normal(getkey(), (layer.in_channels, *(4, 5)[: layer.num_spatial_dims]))
    wrapper = getattr(jno_lora_zoo, f"{method}ConvTranspose")(layer, 2, 3.0, key=getkey())
    assert_close(wrapper(x), layer(x), 1e-5)
    names = wrapper.adapter_fields
    moved = [
        leaf + 0.3 * jax.random.normal(getkey(), leaf.shape)
        for leaf in (getattr(wrapper, name) for name in names)
    ]
    trained = eqx.tree_at(lambda w: [getattr(w, name) for name in names], wrapper, moved)
    assert_close(trained(x), trained.merge()(x), 1e-5)
    assert not jnp.allclose(trained(x), layer(x))


def test_it_is_chosen_by_name_by_variant_and_by_auto_but_not_by_default(getkey):
    model = {"up": eqx.nn.ConvTranspose1d(3, 4, 2, key=getkey()), "head": linear(getkey())}
    chosen = {
        str(wrappers): {row.path: row.wrapper.__name__ for row in plan.wrapped}
        for wrappers in (None, "LoRAConvTranspose", "dora", "auto")
        for plan in [plan_lora(model, 2, wrappers=wrappers)]
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
    adapted = apply_lora(stack, 2, 4.0, key=getkey(), wrappers="LoRAConvTranspose")
    assert adapted.lora_A.shape == (2, 3, 2, math.prod((3, 2)))
    assert eqx.tree_equal(merge_lora(adapted), stack)
