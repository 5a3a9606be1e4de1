"""Every adapter computes its paper's law, merged and as a layer, on every kind of base layer."""

import jax
import jax.numpy as jnp
import numpy as np
from zoo_cases import assert_close, build, everywhere, law_of, perturb
from zoo_cases.layers import matrix_of, with_matrix


@everywhere()
def test_starts_as_the_base(adapter, base):
    inputs = base.arguments()
    expected, actual = base.layer(*inputs), build(adapter, base)(*inputs)
    assert actual.dtype == expected.dtype == jnp.float32
    assert_close(actual, expected, 1e-5)


@everywhere()
def test_merge_is_the_law_in_a_layer_of_the_same_form(adapter, base):
    wrapper = perturb(build(adapter, base))
    merged = wrapper.merge()
    assert jax.tree.structure(merged) == jax.tree.structure(base.layer)
    for new, old in zip(jax.tree.leaves(merged), jax.tree.leaves(base.layer), strict=True):
        assert (new.shape, new.dtype) == (old.shape, old.dtype)
    expected = law_of(adapter, wrapper, base)
    # Something moved. (Blocks of one are not rotations: OFT of one output is the identity.)
    if (adapter.method, len(base.matrix())) != ("OFT", 1):
        assert np.max(np.abs(expected - base.matrix())) > 1e-2
    assert_close(matrix_of(merged), expected, 1e-5)


@everywhere()
def test_the_layer_computes_what_the_base_does_with_the_law_as_its_weight(adapter, base):
    inputs = base.arguments()
    wrapper = perturb(build(adapter, base))
    actual = wrapper(*inputs)
    law = with_matrix(base.layer, law_of(adapter, wrapper, base))
    assert_close(actual, law(*inputs), 2e-5)
    assert_close(actual, wrapper.merge()(*inputs), 2e-5)
