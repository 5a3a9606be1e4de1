"""Shared parts of the tests of `compare`: a small task, and the end of a demo."""

from typing import NamedTuple

import click
import jax
import jax.numpy as jnp

from jno.lora._commands._cli import cli


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


def names_commands_that_exist(text):
    """The end of a demo names three commands of `jno-lora`."""
    commands = cli.list_commands(click.Context(cli))
    lines = text.rstrip().splitlines()
    assert lines[-4] == "Next:"
    for line in lines[-3:]:
        program, command, *_ = line.split()
        assert program == "jno-lora" and command in commands
