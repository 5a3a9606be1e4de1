"""Adapters of declared arrays keep every promise, as the kit checks it."""

import jax
import jax.numpy as jnp
import jax.random as jr
import pytest
from tests.pairs import methods_on
from zoo_cases import OPTIONS, WHOLE_KIT, check_kind, made, parameter_count, perturb

from jno.lora import merge_lora
from jno_lora_arrays import ArrayLayer, DeclaredArray, adapters, through
from jno_lora_testing import WrapperCase, parametrize_with_checks
from jno_lora_zoo import CorDA, collect_statistics

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


@pytest.mark.slow
@parametrize_with_checks(map(case_of, WHOLE_KIT))
def test_conformance(check):
    check()


@pytest.mark.parametrize("method", ["LoRA", "OFT", "CorDA"])
def test_the_checks_of_the_kind(method):
    check_kind(case_of(method))


def function(weight, x):
    return jnp.einsum("ni,ihd->hnd", x, weight)


@pytest.mark.parametrize("method", methods_on("Array"))
def test_every_method_is_computed_as_its_merged_weight(method):
    box, x = kernel(jr.key(0)), jr.normal(jr.key(1), (4, INPUTS))
    cls = getattr(adapters, f"{method}Array")
    adapter = perturb(made(cls, box, R, 3.0, key=jr.key(2), **OPTIONS.get(method, {})))
    merged = merge_lora(adapter)
    assert not jnp.allclose(merged.array, box.array, atol=1e-3)
    found = jax.jit(through(function))(adapter, x)
    assert jnp.max(jnp.abs(found - function(merged.plain(), x))) <= 2e-5 * jnp.max(jnp.abs(found))


def test_calls_of_a_box_are_measured_as_vectors_of_its_matrix():
    class Measured(CorDA, ArrayLayer):
        needs = ("input_covariance", "output_covariance")

    box = DeclaredArray.of(jr.normal(jr.key(0), (2, 3, 2, 2)), "iioo")
    x = jr.normal(jr.key(1), (5, 2, 3))
    loss = lambda box, x: jnp.sum(jax.vmap(box)(x) ** 2)  # noqa: E731
    found = collect_statistics(box, [x], loss, wrapper=Measured)[""]
    inputs = x.reshape(5, 6)
    outputs = inputs @ box.matrix().T
    assert jnp.allclose(found["input_covariance"], inputs.T @ inputs / 5, atol=1e-5)
    assert jnp.allclose(found["output_covariance"], outputs.T @ outputs / 5, atol=1e-4)
