"""Decompositions on a CPU run with one BLAS thread, and never get infinity.

On a CPU, JAX calls the LAPACK of SciPy (`svd`, `qr`, `eigh`, `cholesky` of `cython_lapack`),
which is OpenBLAS with its own threads. These threads spin while they wait, and compete with XLA's
threads, so that a decomposition can cost many times its arithmetic on every core.
"""

import contextlib
import functools
import importlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ._jaxprs import equations_in

_DECOMPOSITIONS = {
    *("cholesky", "eig", "eigh", "geqp3", "geqrf", "hessenberg", "householder_product", "lu"),
    *("qr", "schur", "svd", "triangular_solve", "tridiagonal"),
}

# The number of threads is global to the process, so two concurrent calls would each restore the
# number that the other call has set.
_lock = threading.RLock()


def decomposes(jaxpr: Any) -> bool:
    """Whether a traced function calls LAPACK, directly or in a function that it calls."""
    return any(equation.primitive.name in _DECOMPOSITIONS for equation in equations_in(jaxpr))


def run_decomposition(program: Callable[[], Any], arrays: list[Any]) -> Any:
    """The result of a program that decomposes `arrays`.

    **Raises:** `FloatingPointError` if the result contains NaN or infinity, or, on a CPU, an array
    contains infinity, for which LAPACK may never return.
    """
    if not _lie_on_a_cpu(arrays):
        result = program()
    elif any(_holds(np.isinf, array) for array in arrays):
        raise FloatingPointError("an array holds infinity, and a decomposition may never return")
    else:
        with one_blas_thread():
            result = jax.block_until_ready(program())
    if any(_holds(lambda x: ~np.isfinite(x), array) for array in jax.tree.leaves(result)):
        raise FloatingPointError("the result of a decomposition holds NaN or infinity")
    return result


@contextlib.contextmanager
def one_blas_thread() -> Iterator[None]:
    """A context in which LAPACK uses one thread, in the whole process."""
    with _lock, _controller().limit(limits=1, user_api="blas"):
        yield


@functools.cache
def _controller() -> Any:
    # JAX loads this when it first needs it. threadpoolctl only sees libraries that are loaded.
    importlib.import_module("scipy.linalg.cython_lapack")
    return importlib.import_module("threadpoolctl").ThreadpoolController()


def _lie_on_a_cpu(arrays: list[Any]) -> bool:
    """Whether LAPACK would decompose `arrays`, rather than an accelerator's library."""
    devices = (device for x in arrays if isinstance(x, jax.Array) for device in x.devices())
    return "cpu" in ({device.platform for device in devices} or {jax.default_backend()})


def _holds(is_wrong: Callable[[np.ndarray], np.ndarray], array: Any) -> bool:
    """Whether `is_wrong` is true of a number in a floating array that this process has."""
    is_here = not isinstance(array, jax.Array) or array.is_fully_addressable
    is_floating = jnp.issubdtype(array.dtype, jnp.inexact)
    return is_here and is_floating and bool(np.any(is_wrong(np.asarray(array))))
