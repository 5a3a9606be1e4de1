"""The group `jno-lora`: the built-in commands, and those that plugins add."""

import warnings
from typing import Any

import click

from .._errors import JnoLoraError
from .._registry import PluginRecord, default_registry

# Commands of plugins of this project, and the extra that installs them.
_EXTRAS = {"compare": "compare", "demo": "demo"}


class Group(click.Group):
    """Built-in commands and those of plugins. Errors are messages for the user, not tracebacks.

    Plugins are loaded for the help, and for a command that is not built in.
    """

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names of all commands."""
        found, problems = plugin_commands(self)
        _warn(problems)
        return sorted([*self.commands, *found])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name, if there is one."""
        if cmd_name in self.commands:
            return self.commands[cmd_name]
        found, _ = plugin_commands(self)
        return found.get(cmd_name)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does it; a command that is missing is an error that says where it may be."""
        name = args[0]
        if not name.startswith("-") and self.get_command(ctx, name) is None:
            _warn(plugin_commands(self)[1])
            if name in _EXTRAS:
                raise click.UsageError(
                    f"The command {name!r} is part of jno-lora-compare, which is not installed. "
                    f'Install it with\n    pip install "jno-lora[{_EXTRAS[name]}]"'
                )
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command."""
        try:
            return super().invoke(ctx)
        except JnoLoraError as err:
            raise click.ClickException(str(err)) from err
        except BrokenPipeError:
            raise  # whoever reads the output has enough; click ends quietly
        except OSError as err:
            raise click.ClickException(str(err)) from err


def records() -> tuple[PluginRecord, ...]:
    """The record of every plugin. It shows what is broken, so nothing is warned of."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return default_registry().records(strict=False)


def plugin_commands(builtin: click.Group) -> tuple[dict[str, click.Command], list[str]]:
    """The commands that plugins add, by name, and a line for each that is left out.

    Each plugin gets an empty group of its own, so that it cannot touch the commands of others.
    """
    found: dict[str, click.Command] = {}
    problems: list[str] = []
    for plugin, add_commands in _command_hooks():
        own = click.Group(plugin)
        try:
            add_commands(own)
            commands = dict(own.commands)
            if any(not isinstance(command, click.Command) for command in commands.values()):
                raise TypeError(f"these are not all commands of click: {commands}")
        except (Exception, SystemExit) as err:
            problems.append(f"the commands of {plugin}: {type(err).__name__}: {err}")
            continue
        taken = commands.keys() & {*builtin.commands, *found}
        problems += [f"the command {name!r} of {plugin}: the name is taken" for name in taken]
        found |= {name: it for name, it in commands.items() if name not in taken}
    return found, problems


def _command_hooks() -> Any:
    records()  # loads the plugins without their warnings
    return default_registry().command_hooks()


def _warn(problems: list[str]) -> None:
    """Say on standard error what is left out."""
    for record in records():
        if record.status in ("failed", "incompatible"):
            problems = [f"the plugin {record.describe()}: {record.error}", *problems]
    for problem in problems:
        click.echo(f"Left out, see `jno-lora doctor`: {problem}", err=True)
