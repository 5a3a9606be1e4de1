"""The output of the kit's two commands."""

import click
from click.testing import CliRunner

from jno.lora._commands._cli import Group
from jno_lora_testing.plugin import jno_lora_commands


def run(*arguments: str, code: int = 0) -> str:
    """The output of `jno-lora` with these arguments, which must end with that code."""
    group: click.Group = Group()
    jno_lora_commands(group)
    result = CliRunner().invoke(group, list(arguments))
    assert result.exit_code == code, (result.output, result.exception)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.output
