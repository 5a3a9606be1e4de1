"""Makes `foundax_cases`, what these tests share, importable under any import mode."""

import sys
from pathlib import Path

import jax
import pytest

_HERE = str(Path(__file__).parent)
if _HERE not in sys.path:
    sys.path.append(_HERE)

pytest.register_assert_rewrite("foundax_cases")


@pytest.fixture(scope="module", autouse=True)
def _compiled_programs_are_dropped():
    """Hundreds of small programs are compiled here, and each stays in memory until dropped."""
    yield
    jax.clear_caches()
