"""A small task, which the tests of `compare` share."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class GradientDescent(NamedTuple):
    rate: float = 0.1

    def init(self, params):
        return jnp.zeros(())

    def update(self, gradient, state, params):
        return jax.tree.map(lambda g: -self.rate * g, gradient), state + 1


def loss(model, batch):
    x, y = batch
    return jnp.mean((jax.vmap(model)(x) - y) ** 2)


SETTINGS = {"steps": 20, "key": jax.random.key(2), "optimizer": GradientDescent()}
