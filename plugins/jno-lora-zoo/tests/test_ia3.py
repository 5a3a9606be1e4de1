"""IA3: the bias is not scaled, and rank and alpha do not matter."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from zoo_cases import adapters, build, equal_leaves, perturb


@adapters("IA3", linear=("plain", "duck"), conv=("plain", "groups"))
def test_the_bias_is_not_scaled(adapter, base):
    wrapper = build(adapter, base)
    silenced = eqx.tree_at(lambda w: w.scale, wrapper, jnp.zeros_like(wrapper.scale))
    output = silenced(*base.arguments())
    bias = np.asarray(base.layer.bias)
    assert np.array_equal(np.asarray(output), np.broadcast_to(bias, output.shape))
    assert equal_leaves(perturb(wrapper).merge().bias, base.layer.bias)


@adapters("IA3")
def test_rank_and_alpha_do_not_matter(adapter, base):
    one = perturb(build(adapter, base, alpha=1.0, rank=1))
    other = perturb(build(adapter, base, alpha=0.0, rank=50))
    assert equal_leaves(one.merge(), other.merge())
    assert equal_leaves(one(*base.arguments()), other(*base.arguments()))
