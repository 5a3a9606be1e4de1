"""Adapters of declared arrays keep every promise, as the kit checks it."""

import jax
import jax.numpy as jnp
import jax.random as jr
import pytest
from zoo_cases import ALL_METHODS, OPTIONS, made, parameter_count, perturb

from jno.lora import merge_lora
from jno.lora.testing import WrapperCase, parametrize_with_checks
from jno_lora_arrays import DeclaredArray, adapters, through

INPUTS, HEADS, SIZE, R = 5, 2, 3, 2


def kernel(key):
    """Of an attention's query, `(in, heads, size)`."""
    return DeclaredArray.of(jr.normal(key, (INPUTS, HEADS, SIZE)) / 2, "ioo")


def case_of(method):
    return WrapperCase(
        getattr(adapters, f"{method}Array"),
        base=kernel,
        inputs=lambda key: (jr.normal(key, (INPUTS,)),),
        rank=R,
        options=OPTIONS.get(method, {}),
        parameters=parameter_count(method, R, HEADS * SIZE, INPUTS),
    )


@parametrize_with_checks(map(case_of, ("LoRA", "DoRA", "OFT")))
def test_conformance(check):
    check()


def function(weight, x):
    return jnp.einsum("ni,ihd->hnd", x, weight)


@pytest.mark.parametrize("method", ALL_METHODS)
def test_every_method_is_computed_as_its_merged_weight(method):
    box, x = kernel(jr.key(0)), jr.normal(jr.key(1), (4, INPUTS))
    cls = getattr(adapters, f"{method}Array")
    adapter = perturb(made(cls, box, R, 3.0, key=jr.key(2), **OPTIONS.get(method, {})))
    merged = merge_lora(adapter)
    assert not jnp.allclose(merged.array, box.array, atol=1e-3)
    found = jax.jit(through(function))(adapter, x)
    assert jnp.max(jnp.abs(found - function(merged.plain(), x))) <= 2e-5 * jnp.max(jnp.abs(found))
