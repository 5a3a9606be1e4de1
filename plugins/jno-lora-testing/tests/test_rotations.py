"""The kit's rotations are the rotations of e3nn-jax, which the tests of the core do not have."""

import e3nn_jax as e3nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jno_lora_testing import rotation

KEY = jax.random.key(5)


def test_rotations_are_those_of_e3nn():
    # The products of vectors, by the coefficients of e3nn, are irreps of l = 0 to 3.
    x = np.random.default_rng(0).normal(size=(3, 3))
    products = {}
    for l in (0, 1, 2):  # noqa: E741
        products[l] = np.einsum("ijk,i,j->k", np.asarray(e3nn.clebsch_gordan(1, 1, l)), x[0], x[1])
    products[3] = np.einsum(
        "ijk,i,j->k", np.asarray(e3nn.clebsch_gordan(1, 2, 3)), x[2], products[2]
    )
    y = np.concatenate([products[0], products[1], products[2], products[3], x.ravel()])
    inputs = jnp.asarray(y, jnp.float32)
    symmetry = rotation(e3nn.Irreps("0e + 1e + 2e + 3o + 3x1o"), ("1o", "0o"))
    inverts = set()
    for seed in range(4):
        element = symmetry.draw(jax.random.key(seed))
        (moved,) = symmetry.on_inputs(element, inputs)
        matrix, pseudoscalar = symmetry.on_output(element, (jnp.eye(3), jnp.ones(1)))
        R = np.asarray(matrix).T  # rows of the identity, rotated
        np.testing.assert_allclose(R @ R.T, np.eye(3), atol=1e-6)
        np.testing.assert_allclose(pseudoscalar, np.linalg.det(R), atol=1e-6)
        z = x @ R.T
        np.testing.assert_allclose(moved[-9:], z.ravel(), atol=1e-5)
        for l, part in ((0, slice(0, 1)), (1, slice(1, 4)), (2, slice(4, 9))):  # noqa: E741
            C = np.asarray(e3nn.clebsch_gordan(1, 1, l))
            np.testing.assert_allclose(moved[part], np.einsum("ijk,i,j->k", C, *z[:2]), atol=1e-5)
        C = np.asarray(e3nn.clebsch_gordan(1, 2, 3))
        expected = np.einsum("ijk,i,j->k", C, z[2], np.asarray(moved[4:9]))
        np.testing.assert_allclose(moved[9:16], expected, atol=1e-5)
        inverts.add(element.inverts)
    assert inverts == {True, False}
    proper = rotation("1o", "1o", inversion=False)
    assert not any(proper.draw(jax.random.key(seed)).inverts for seed in range(4))


def test_rotations_keep_arrays_of_irreps_and_the_inputs_that_do_not_rotate():
    symmetry = rotation(("1o", "0e + 1o"), "0e", inputs=(0, 2))
    species, features = jnp.arange(2), e3nn.IrrepsArray("0e + 1o", jnp.ones((2, 4)))
    element = symmetry.draw(KEY)
    _, same, moved = symmetry.on_inputs(element, jnp.ones((2, 3)), species, features)
    assert same is species and moved.irreps == features.irreps
    assert np.array_equal(moved.array[:, 0], [1, 1]) and not np.allclose(moved.array[:, 1:], 1)
    with pytest.raises(ValueError, match="The rotation has irreps of 2 arrays for 1"):
        rotation(("1o", "0e"), "0e").on_inputs(element, jnp.ones(3))
    with pytest.raises(ValueError, match=r"have 1 numbers, but the array has the shape \(3,\)"):
        symmetry.on_output(element, jnp.ones(3))
