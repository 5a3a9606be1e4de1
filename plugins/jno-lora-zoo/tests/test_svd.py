"""Singular triplets: the random subspace against the exact decomposition."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jno_lora_zoo
from jno_lora_zoo._svd import largest, smallest

KEY = jax.random.key(5)
N = 160


def matrix(spectrum, shape=(N, N)):
    """A matrix with these singular values, between random bases."""
    rng = np.random.default_rng(0)
    U, V = (np.linalg.qr(rng.normal(size=(n, min(shape))))[0] for n in shape)
    return jnp.asarray((U * spectrum) @ V.T, jnp.float32)


SPECTRA = {
    "slow": 1 / np.arange(1, N + 1),
    "quick": 0.5 ** np.arange(N),  # beyond what float32 resolves
    "step": np.where(np.arange(N) < 10, 1.0, 1e-3),
}


@pytest.mark.parametrize(
    ("name", "shape"), [("slow", (N, N)), ("quick", (N + 90, N)), ("step", (N, N + 90))]
)
def test_a_random_subspace_finds_the_largest_triplets(name, shape):
    W = matrix(SPECTRA[name], shape)
    U, S, Vt = largest(W, 8, "randomized", KEY)
    assert (U.shape, S.shape, Vt.shape) == ((shape[0], 8), (8,), (8, shape[1]))
    np.testing.assert_allclose(S, SPECTRA[name][:8], rtol=2e-4)
    for basis in (U.T, Vt):
        np.testing.assert_allclose(basis @ basis.T, np.eye(8), atol=1e-5)
    kept = 1 - np.linalg.norm(W - (U * S[None, :]) @ Vt) ** 2 / np.linalg.norm(W) ** 2
    possible = np.sum(np.asarray(largest(W, 8, "exact", KEY).S) ** 2) / np.linalg.norm(W) ** 2
    assert kept >= 0.998 * possible


def test_auto_reads_a_matrix_that_is_large_beside_the_rank_ten_times_and_decomposes_others():
    W = jnp.zeros((512, 600))
    (call,) = jax.make_jaxpr(lambda W: largest(W, 4, "auto", KEY))(W).eqns
    body = call.params["jaxpr"].jaxpr
    reads = [
        e for e in body.eqns if e.primitive.name == "dot_general" and body.invars[0] in e.invars
    ]
    assert len(reads) == 10

    def decomposes(shape, r, svd="auto"):
        program = str(jax.make_jaxpr(lambda W: largest(W, r, svd, KEY))(jnp.zeros(shape)))
        return "svd[" in program and "dot_general" not in program

    assert decomposes((512, 600), 4, "exact")
    assert decomposes((128, 256), 4) and decomposes((512, 600), 64)
    assert not decomposes((512, 600), 4)


@pytest.mark.parametrize("shape", [(60, 40), (40, 60)])
def test_the_gram_route_finds_the_smallest_triplets(shape):
    W = jax.random.normal(KEY, shape)
    exact, gram = (smallest(W, 5, svd) for svd in ("exact", "gram"))
    np.testing.assert_allclose(gram.S, exact.S, rtol=1e-3)
    products = [(t.U * t.S[None, :]) @ t.Vt for t in (exact, gram)]
    error = np.linalg.norm(products[0] - products[1]) / np.linalg.norm(products[0])
    assert error <= 4e-2
    assert smallest(W, 5, "auto").S.tolist() == exact.S.tolist()


@pytest.mark.parametrize("method", ["PiSSA", "LoRAXS"])
def test_the_start_is_the_layer_however_the_triplets_are_found(method, getkey):
    layer = eqx.nn.Linear(80, 60, key=getkey())
    x = jax.random.normal(getkey(), (80,))
    make = getattr(jno_lora_zoo, f"{method}Linear")
    for svd in ("exact", "randomized"):
        wrapper, other = (make(layer, 4, 4.0, key=getkey(), svd=svd) for _ in range(2))
        np.testing.assert_allclose(wrapper(x), layer(x), atol=1e-5)
        # The exact one depends on the weight alone, the other on the key as well.
        assert np.array_equal(wrapper.lora_A, other.lora_A) == (svd == "exact")


@pytest.mark.parametrize(("method", "known"), [("PiSSA", "randomized"), ("MiLoRA", "gram")])
def test_another_name_is_an_error(method, known, getkey):
    layer, cls = eqx.nn.Linear(6, 5, key=getkey()), getattr(jno_lora_zoo, f"{method}Linear")
    with pytest.raises(ValueError, match=rf"(?s)'exact', '{known}'.*'full'"):
        cls(layer, 2, 1.0, key=getkey(), svd="full")
