"""Models of Flax and Haiku: run by `make test-frameworks` in an environment of their own."""

import os

import jax
import pytest

# Flax and Haiku are no dependencies of the tests.
collect_ignore_glob = [] if os.environ.get("JNO_LORA_TEST_FRAMEWORKS") else ["test_*.py"]


@pytest.fixture(autouse=True)
def _as_their_authors_run_them():
    """JAX's own defaults: these layers multiply masks by floats, and add vectors to matrices."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield
