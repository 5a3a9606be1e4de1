"""A fixture of all tests of the zoo."""

import jax
import pytest


@pytest.fixture(scope="module", autouse=True)
def _compiled_programs_are_dropped():
    """Thousands of small programs are compiled here, and each stays in memory until dropped."""
    yield
    jax.clear_caches()
