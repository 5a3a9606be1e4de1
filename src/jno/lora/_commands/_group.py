"""The group `jno-lora`: the built-in commands, and those that plugins add."""

import warnings
from typing import Any

import click

from .._errors import JnoLoraError
from .._registry import BROKEN, PluginRecord, default_registry

# Commands of jno-lora-compare, which may be missing. An extra of the same name installs each.
_OURS = ("compare", "demo")


class Group(click.Group):
    """Built-in commands and those of plugins. Errors are messages for the user, not tracebacks.

    The help, and a command that is not built in, load plugins and say on standard error what is
    left out.
    """

    def list_commands(self, ctx: click.Context) -> list[str]:
        found, left_out = plugin_commands(self)
        _say(left_out)
        return sorted([*self.commands, *found])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in self.commands:
            return self.commands[cmd_name]
        found, left_out = plugin_commands(self)
        if cmd_name not in found:
            _say(left_out)
            if cmd_name in _OURS:
                raise click.UsageError(
                    f"The command {cmd_name!r} needs jno-lora-compare, which is not installed. "
                    f'Install what it needs with\n    pip install "jno-lora[{cmd_name}]"'
                )
        return found.get(cmd_name)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise  # whoever reads the output has enough; click ends quietly
        except (JnoLoraError, OSError) as err:
            raise click.ClickException(str(err)) from err


def records() -> tuple[PluginRecord, ...]:
    """The records of all plugins, without warnings: a command shows what is broken."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return default_registry().records(strict=False)


def plugin_commands(builtin: click.Group) -> tuple[dict[str, click.Command], list[str]]:
    """The commands that plugins add, by name, and a line for each that is left out.

    Each plugin gets an empty group of its own, so that it cannot touch the commands of others.
    """
    records()  # loads the plugins without their warnings
    found: dict[str, click.Command] = {}
    left_out: list[str] = []
    for record, add_commands in default_registry().hooks("jno_lora_commands"):
        plugin, own = record.describe(), click.Group()
        try:
            add_commands(group=own)
            commands = dict(own.commands)
            if not all(isinstance(command, click.Command) for command in commands.values()):
                raise TypeError(f"these are not all commands of click: {commands}")
        except (Exception, SystemExit) as err:
            left_out.append(f"the commands of {plugin}: {type(err).__name__}: {err}")
            continue
        taken = commands.keys() & {*builtin.commands, *found}
        left_out += [f"the command {name!r} of {plugin}: the name is taken" for name in taken]
        found |= {name: command for name, command in commands.items() if name not in taken}
    return found, left_out


def _say(left_out: list[str]) -> None:
    broken = (record for record in records() if record.status in BROKEN)
    for line in (*(f"the plugin {it.describe()}: {it.error}" for it in broken), *left_out):
        click.echo(f"Left out, see `jno-lora doctor`: {line}", err=True)
