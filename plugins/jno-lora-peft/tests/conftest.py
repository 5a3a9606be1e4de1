"""The layer that most files here are for."""

import equinox as eqx
import jax
import pytest


@pytest.fixture
def linear():
    return eqx.nn.Linear(4, 3, key=jax.random.key(0))
