"""Derivatives by the input, alone and with the adapter's arrays; and Taylor mode.

The kit compares them for each adapter, compiled. Here are the cases that it does not see.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest
from jax.experimental.jet import jet
from zoo_cases import adapters, assert_close, build, case, each, perturb

from jno.lora import lora_trainable_filter


def split(adapter, base):
    wrapper = perturb(build(adapter, base))
    return eqx.partition(wrapper, lora_trainable_filter(wrapper))


def energy(layer, x, direction):
    """A number made of second derivatives by the input."""

    def number(x):
        return jnp.sum(jnp.sin(layer(x)))

    first, second = jax.jvp(jax.grad(number), (x,), (direction,))
    return jnp.sum(jnp.cos(first)) + jnp.sum(second**2)


@adapters(linear=("plain",), conv=("groups",))
def test_gradients_of_second_derivatives_are_those_of_the_merged_layer(adapter, base):
    trainable, frozen = split(adapter, base)
    (x,) = base.arguments()

    def loss(trainable, x, read):
        return energy(read(eqx.combine(trainable, frozen)), x, jnp.cos(x))

    # Not compiled: each operation is differentiated as it comes.
    got = jax.grad(loss, argnums=(0, 1))(trainable, x, lambda wrapper: wrapper)
    expected = jax.grad(loss, argnums=(0, 1))(trainable, x, lambda wrapper: wrapper.merge())
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert_close(one, other, 2e-4)


@adapters(conv=("plain", "groups_straddled"))
def test_taylor_mode_follows_a_batch_and_can_be_differentiated(adapter, base):
    trainable, frozen = split(adapter, base)
    (x,) = base.arguments()
    batch = jnp.stack([x, jnp.sin(x)])

    def loss(trainable, read):
        layer = jax.vmap(read(eqx.combine(trainable, frozen)))
        value, (first, second) = jet(
            lambda x: jnp.tanh(layer(x)), (batch,), ((jnp.cos(batch), batch),)
        )
        return jnp.sum(value * first) + jnp.sum(jnp.sin(second))

    compiled = eqx.filter_jit(jax.value_and_grad(loss))
    got = compiled(trainable, lambda wrapper: wrapper)
    expected = compiled(trainable, lambda wrapper: wrapper.merge())
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert_close(one, other, 2e-4)


@each()
def test_taylor_mode_by_an_adapter_s_own_arrays_is_right_or_refused(adapter):
    base = case(adapter.kind, "plain")
    trainable, frozen = split(adapter, base)
    (x,) = base.arguments()
    leaves, form = jax.tree.flatten(trainable)

    def terms(read):
        def outputs(*leaves):
            wrapper = eqx.combine(jax.tree.unflatten(form, leaves), frozen)
            return read(wrapper)(x)

        series = [[jnp.cos(leaf), jnp.sin(leaf)] for leaf in leaves]
        return jet(outputs, tuple(leaves), tuple(series))

    if adapter.method == "OFT":  # an elimination in a loop, which `jet` does not know
        with pytest.raises((KeyError, NotImplementedError)):
            terms(lambda wrapper: wrapper)
        return
    got, expected = terms(lambda wrapper: wrapper), terms(lambda wrapper: wrapper.merge())
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert_close(one, other, 2e-4)
