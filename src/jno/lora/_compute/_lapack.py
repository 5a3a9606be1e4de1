"""Decompositions on a CPU: one thread at a time.

On a CPU, JAX calls the LAPACK of SciPy (`jaxlib` takes `svd`, `qr`, `eigh`, `cholesky` from
`scipy.linalg.cython_lapack`): OpenBLAS with threads of its own. They wait for each other by
spinning, against XLA's threads and whatever else runs, so that a decomposition can cost many times
its own arithmetic on every core. With one thread nothing waits.
"""

import contextlib
import functools
import importlib
import threading
from collections.abc import Iterator
from typing import Any

_DECOMPOSITIONS = {
    "cholesky",
    "eig",
    "eigh",
    "geqp3",
    "geqrf",
    "hessenberg",
    "householder_product",
    "lu",
    "qr",
    "schur",
    "svd",
    "triangular_solve",
    "tridiagonal",
}

# The number of threads is one for the whole process: two who set it at once would each put back
# what the other has set.
_lock = threading.RLock()


@contextlib.contextmanager
def one_blas_thread() -> Iterator[None]:
    """LAPACK works in the calling thread alone until this is left, in the whole process."""
    with _lock, _controller().limit(limits=1, user_api="blas"):
        yield


def decomposes(jaxpr: Any) -> bool:
    """Whether a traced function calls LAPACK, directly or in a function that it calls."""
    return any(
        equation.primitive.name in _DECOMPOSITIONS
        or any(decomposes(inner) for value in equation.params.values() for inner in _inside(value))
        for equation in jaxpr.eqns
    )


def _inside(value: Any) -> Iterator[Any]:
    """The traced functions among the parameters of an operation."""
    for item in value if isinstance(value, tuple | list) else (value,):
        if hasattr(item, "eqns"):
            yield item


@functools.cache
def _controller() -> Any:
    # Loaded here, as JAX does when it first needs it: what is not loaded cannot be set.
    importlib.import_module("scipy.linalg.cython_lapack")
    return importlib.import_module("threadpoolctl").ThreadpoolController()
