"""The output of the kit's two commands, and a case of an adapter of linear layers."""

import click
import equinox as eqx
import jax
from click.testing import CliRunner

from jno.lora import MatrixAdapter
from jno.lora._commands._cli import Group
from jno_lora_testing import WrapperCase
from jno_lora_testing.plugin import jno_lora_commands


def run(*arguments: str, code: int = 0) -> str:
    """The output of `jno-lora` with these arguments, which must end with that code."""
    group: click.Group = Group()
    jno_lora_commands(group)
    result = CliRunner().invoke(group, list(arguments))
    assert result.exit_code == code, (result.output, result.exception)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.output


def case_of(wrapper, **changes):
    """A case with a linear layer, of an adapter with the parameters of LoRA, and with a gate."""
    settings = {
        "base": lambda key: eqx.nn.Linear(6, 4, key=key),
        "inputs": lambda key: (jax.random.normal(key, (6,)),),
        "parameters": 2 * (6 + 4 + (MatrixAdapter.of(wrapper).rank_gate is not None)),
    }
    return WrapperCase(wrapper, **{**settings, **changes})
