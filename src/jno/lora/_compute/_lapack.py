"""Decompositions on a CPU run with one BLAS thread.

On a CPU, JAX calls the LAPACK of SciPy (`svd`, `qr`, `eigh`, `cholesky` of `cython_lapack`),
which is OpenBLAS with its own threads. These threads spin while they wait, and compete with XLA's
threads, so that a decomposition can cost many times its arithmetic on every core.
"""

import contextlib
import functools
import importlib
import threading
from collections.abc import Iterator
from typing import Any

from ._jaxprs import equations_in

_DECOMPOSITIONS = {
    *("cholesky", "eig", "eigh", "geqp3", "geqrf", "hessenberg", "householder_product", "lu"),
    *("qr", "schur", "svd", "triangular_solve", "tridiagonal"),
}

# The number of threads is global to the process, so two concurrent calls would each restore the
# number that the other call has set.
_lock = threading.RLock()


@contextlib.contextmanager
def one_blas_thread() -> Iterator[None]:
    """A context in which LAPACK uses one thread, in the whole process."""
    with _lock, _controller().limit(limits=1, user_api="blas"):
        yield


def decomposes(jaxpr: Any) -> bool:
    """Whether a traced function calls LAPACK, directly or in a function that it calls."""
    return any(equation.primitive.name in _DECOMPOSITIONS for equation in equations_in(jaxpr))


@functools.cache
def _controller() -> Any:
    # JAX loads this when it first needs it. threadpoolctl only sees libraries that are loaded.
    importlib.import_module("scipy.linalg.cython_lapack")
    return importlib.import_module("threadpoolctl").ThreadpoolController()
