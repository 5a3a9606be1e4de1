"""Decompositions on a CPU run with one BLAS thread, and of finite numbers.

On a CPU, JAX calls the LAPACK of SciPy (`svd`, `qr`, `eigh`, `cholesky` of `cython_lapack`),
which is OpenBLAS with its own threads. These threads spin while they wait, and compete with XLA's
threads, so that a decomposition can cost many times its arithmetic on every core.
"""

import contextlib
import functools
import importlib
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax

from .jaxprs import equations_in
from .precision import is_finite

T = TypeVar("T")

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


def run_decomposition(program: Callable[[], T], arrays: list[Any]) -> T:
    """The result of a program that decomposes `arrays`.

    **Raises:** `FloatingPointError` if an array contains NaN or infinity: every number of the
    result would be NaN, and LAPACK may never return.
    """
    if not all(map(is_finite, arrays)):
        raise FloatingPointError("an array holds NaN or infinity, and would be decomposed")
    if not _lie_on_a_cpu(arrays):
        return program()
    with one_blas_thread():
        return jax.block_until_ready(program())


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
