"""Transformations of JAX and Equinox that the kit does not try."""

import jax
import jax.numpy as jnp
import numpy as np
from zoo_cases import adapters, assert_close, build, equal_leaves, perturb


@adapters(linear=("scalar_input",), conv=())
def test_vmap_over_scalars_is_a_loop(adapter, base):
    wrapper = perturb(build(adapter, base))
    (x,) = base.arguments()
    batch = jnp.stack([x, 2 * x, -x])
    expected = np.stack([np.asarray(wrapper(one)) for one in batch])
    assert_close(jax.vmap(wrapper)(batch), expected, 1e-5)


@adapters(linear=("plain", "subclass"), conv=("plain", "subclass"))
def test_the_key_that_equinox_passes_to_every_layer_changes_nothing(adapter, base):
    wrapper = perturb(build(adapter, base))
    inputs = base.arguments()
    assert equal_leaves(wrapper(*inputs, key=jax.random.key(0)), wrapper(*inputs))
