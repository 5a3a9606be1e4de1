"""Haliax uses names that JAX has deprecated, and the suite's warnings are errors.

Haliax does not run on JAX 0.11, which removed these names, and so not in every environment of the
suite. `make test-stacks` has an environment with Levanter in which all of these tests run.
"""

import importlib.util
import os
import warnings
from collections.abc import Iterator

import pytest

HAS_HALIAX, HAS_LEVANTER = (
    importlib.util.find_spec(name) is not None for name in ("haliax", "levanter")
)
if os.environ.get("JNO_LORA_TEST_LEVANTER") and not HAS_LEVANTER:
    raise ImportError("JNO_LORA_TEST_LEVANTER=1 needs levanter: make test-stacks")
collect_ignore_glob = [] if HAS_HALIAX else ["test_*.py"]
collect_ignore = [] if HAS_LEVANTER else ["test_levanter.py"]

if HAS_HALIAX:
    with warnings.catch_warnings(action="ignore"):
        import haliax  # noqa: F401


@pytest.fixture(autouse=True)
def deprecated_names() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"jax\.\S+ is deprecated", DeprecationWarning)
        yield
