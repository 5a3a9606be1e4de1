"""The fixtures of the core's tests."""

from tests.core.conftest import *  # noqa: F403
