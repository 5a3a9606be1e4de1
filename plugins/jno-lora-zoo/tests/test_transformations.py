"""Transformations of JAX and Equinox that the kit does not try."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from zoo_cases import adapters, assert_close, build, case, each, equal_leaves, perturb


@adapters(linear=("scalar_input",), conv=())
def test_vmap_over_scalars_is_a_loop(adapter, base):
    wrapper = perturb(build(adapter, base))
    (x,) = base.arguments()
    batch = jnp.stack([x, 2 * x, -x])
    expected = np.stack([np.asarray(wrapper(one)) for one in batch])
    assert_close(jax.vmap(wrapper)(batch), expected, 1e-5)


@each()
def test_every_buffer_can_be_donated_and_again(adapter):
    base = case(adapter.kind, "plain")
    wrapper = build(adapter, jax.tree.map(jnp.copy, base.layer))
    expected = np.asarray(wrapper(*base.arguments()))

    @eqx.filter_jit(donate="all")
    def step(w):
        return jax.tree.map(lambda a: a * 1 if jnp.issubdtype(a.dtype, jnp.floating) else a, w)

    leaves = jax.tree.leaves(wrapper)
    wrapper = step(step(wrapper))
    assert sum(leaf.is_deleted() for leaf in leaves) == len(leaves)
    assert_close(wrapper(*base.arguments()), expected, 1e-6)


@adapters(linear=("plain", "subclass"), conv=("plain", "subclass"))
def test_the_key_that_equinox_passes_to_every_layer_changes_nothing(adapter, base):
    wrapper = perturb(build(adapter, base))
    inputs = base.arguments()
    assert equal_leaves(wrapper(*inputs, key=jax.random.key(0)), wrapper(*inputs))
