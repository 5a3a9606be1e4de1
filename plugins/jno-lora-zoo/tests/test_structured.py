"""Structured updates: which way they are computed, and their options."""

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest
from zoo_cases import assert_close, perturb, shapes_in_jaxpr
from zoo_cases.layers import matrix_of

import jno_lora_zoo


def trained(name, layer, rank, **options):
    """The adapter of that name after some training."""
    cls = getattr(jno_lora_zoo, name)
    return perturb(cls(layer, rank, 3.0, key=jax.random.key(1), **options))


def linear(inputs, outputs):
    return eqx.nn.Linear(inputs, outputs, key=jax.random.key(0))


def makes_a_matrix(wrapper):
    """Whether a call makes an array of the weight's shape."""
    x = jnp.ones(wrapper.base.weight.shape[1])
    return wrapper.base.weight.shape in shapes_in_jaxpr(lambda w, x: w(x), wrapper, x)


@pytest.mark.parametrize(("rank", "by_matrix"), [(2, False), (3, True)])
def test_loha_takes_the_way_that_costs_less(rank, by_matrix):
    # The product of rank r^2 costs r^2 (in + out), which is to be at most in out / 2.
    wrapper = trained("LoHaLinear", linear(19, 18), rank)
    assert makes_a_matrix(wrapper) == by_matrix
    x = jnp.linspace(-1, 1, 19)
    assert_close(wrapper(x), wrapper.merge()(x), 1e-5)


def test_the_update_of_loha_is_one_of_rank_r_squared():
    wrapper = trained("LoHaConv", eqx.nn.Conv1d(3, 5, 2, key=jax.random.key(0)), 2)
    A, B = wrapper.low_rank_update()
    assert (A.shape, B.shape) == ((4, 6), (5, 4))
    assert_close(B @ A, matrix_of(wrapper.merge()) - matrix_of(wrapper.base), 1e-5)
