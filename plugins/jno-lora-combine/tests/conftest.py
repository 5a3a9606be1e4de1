"""The fixtures of the core's tests that tests of sets use."""

from tests.core.conftest import model, registry

__all__ = ["model", "registry"]
