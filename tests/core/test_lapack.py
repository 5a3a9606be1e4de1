"""While a weight is decomposed, BLAS has one thread; afterwards as many as before."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg.cython_lapack  # noqa: F401  # what JAX calls
import threadpoolctl

from jno.lora._compute._lapack import decomposes, one_blas_thread
from jno.lora._compute._program import call_compiled
from jno.lora.extending import equations_in, gauss_jordan


def threads():
    found = threadpoolctl.threadpool_info()
    return max(one["num_threads"] for one in found if one["user_api"] == "blas")


@pytest.fixture
def several_threads():
    """More than one, even where the suite is run with one."""
    with threadpoolctl.threadpool_limits(4, user_api="blas"):
        if threads() < 2:
            pytest.fail("this BLAS cannot be given threads")
        yield


def threads_seen(x):
    seen = jax.ShapeDtypeStruct((), jnp.int32)
    return jax.pure_callback(lambda _: np.int32(threads()), seen, x)


def q_and_threads(x):
    return jnp.linalg.qr(x)[0], threads_seen(x)


def test_only_programs_that_decompose_have_one_thread(several_threads):
    def first(x, number):
        q, seen = q_and_threads(x)
        return q + number, seen

    before = threads()
    seen = [call_compiled(q_and_threads, k * jnp.eye(3))[1] for k in (1, 2)]
    seen.append(call_compiled(first, jnp.eye(3), np.float32(1))[1])  # a number of NumPy
    assert (seen, threads()) == ([1, 1, 1], before)
    assert call_compiled(threads_seen, jnp.ones(2)) == before
    with one_blas_thread():
        with one_blas_thread():
            pass
        assert threads() == 1
    assert threads() == before


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (jnp.linalg.svd, True),
        (jnp.linalg.inv, True),
        (jax.jit(jnp.linalg.cholesky), True),
        (lambda W: jax.lax.cond(W[0, 0] > 0, jnp.linalg.pinv, jnp.transpose, W), True),
        (lambda W: jax.lax.map(lambda w: jnp.linalg.svd(w[None])[1], W), True),
        (lambda W: jax.random.normal(jax.random.key(0), W.shape) @ W, False),
    ],
)
def test_a_decomposition_is_found_however_deep(function, expected):
    assert decomposes(jax.make_jaxpr(function)(jnp.eye(3)).jaxpr) is expected


@pytest.mark.parametrize("batch", [(), (2, 3)])
@pytest.mark.parametrize("pivoting", [True, False])
def test_elimination_solves_without_lapack(batch, pivoting, getkey):
    A = jax.random.normal(getkey(), (*batch, 4, 4))
    # A zero on the diagonal needs an exchange of rows; a positive definite matrix does not.
    positive = A @ A.mT + 0.1 * jnp.broadcast_to(jnp.eye(4), A.shape)
    A = A.at[..., 0, 0].set(0.0) if pivoting else positive
    B = jax.random.normal(getkey(), (*batch, 4, 3))
    X = jax.jit(gauss_jordan, static_argnames="pivoting")(A, B, pivoting=pivoting)
    np.testing.assert_allclose(A @ X, B, atol=1e-4)
    traced = jax.make_jaxpr(lambda A, B: gauss_jordan(A, B, pivoting=pivoting))(A, B)
    assert not decomposes(traced.jaxpr)
    # The equations in the loop are among them.
    assert "argmax" in {e.primitive.name for e in equations_in(traced.jaxpr)} or not pivoting
