"""Haliax uses names that JAX has deprecated, and the suite's warnings are errors."""

import warnings
from collections.abc import Iterator

import pytest

with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
    import haliax  # noqa: F401


@pytest.fixture(autouse=True)
def deprecated_names() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "jax.core.is_constant_dim", DeprecationWarning)
        yield
