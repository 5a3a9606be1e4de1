"""The command line: the commands of `jno-lora` and of plugins. Each imports what it needs."""

import json
import warnings
from collections.abc import Callable
from typing import Any

import click

from .._errors import JnoLoraError
from .._registry.plugins import BROKEN, PluginRecord, first_party
from .._registry.registry import default_registry
from .._showing.tables import Table, print_table


def records() -> tuple[PluginRecord, ...]:
    """The records of all plugins, without warnings: a command shows which plugins are broken."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return default_registry().records(strict=False)


def _plugin_commands() -> tuple[dict[str, tuple[PluginRecord, click.Command]], list[str]]:
    """The commands that plugins add, by name, and a line for each that is left out.

    Each plugin gets an empty group, so that it cannot touch the commands of other plugins.
    """
    records()  # loads the plugins without their warnings
    commands: dict[str, tuple[PluginRecord, click.Command]] = {}
    left_out: list[str] = []
    for record, add_commands in default_registry().hooks("jno_lora_commands"):
        plugin, group = record.describe(), click.Group()
        try:
            add_commands(group=group)
        except Exception as err:
            left_out.append(f"the commands of {plugin}: {type(err).__name__}: {err}")
            continue
        for name, command in group.commands.items():
            if name in commands or name in cli.commands:
                left_out.append(f"the command {name!r} of {plugin}: the name is taken")
            else:
                commands[name] = (record, command)
    return commands, left_out


class Group(click.Group):
    """Built-in commands and commands of plugins. Errors are messages for the user, not tracebacks.

    The help, and a command that is not built in, load plugins and list on standard error the
    plugins and commands that are left out.
    """

    def list_commands(self, ctx: click.Context) -> list[str]:
        added, left_out = _plugin_commands()
        _list_left_out(left_out)
        return sorted([*self.commands, *added])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in self.commands:
            return self.commands[cmd_name]
        import importlib_metadata

        added, left_out = _plugin_commands()
        if cmd_name in added:
            return added[cmd_name][1]
        _list_left_out(left_out)
        distributions = importlib_metadata.distributions
        if missing := [name for name in first_party() if not [*distributions(name=name)]]:
            names = ", ".join(sorted(missing))
            advice = f"Plugins of this project that are not installed (pip install ...): {names}"
            click.echo(advice, err=True)
        return None

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise  # the reader closed the pipe; click exits quietly
        except (JnoLoraError, OSError) as err:
            raise click.ClickException(str(err)) from err


def _list_left_out(commands: list[str]) -> None:
    """Print a line for each broken plugin, and the lines about `commands` that are left out."""
    broken = [record for record in records() if record.status in BROKEN]
    plugins = [f"the plugin {record.describe()}: {record.error}" for record in broken]
    for line in (*plugins, *commands):
        click.echo(f"Left out, see `jno-lora doctor`: {line}", err=True)


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="jno-lora")
def cli() -> None:
    """Adapters (LoRA and its relatives) for Equinox models, as plugins."""


_json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, with stable keys.")


@cli.command()
@_json_option
def plugins(as_json: bool) -> None:
    """List the installed plugins, the broken ones too."""
    from . import installed

    _print(installed.plugins(records()), installed.plugins_as_table, as_json)


@cli.command()
@click.option("--report", is_flag=True, help="Print one block of Markdown, for a report of a bug.")
@click.pass_context
def doctor(ctx: click.Context, report: bool) -> None:
    """Look for trouble in this installation. Exits with 1 if there is trouble."""
    from .doctor import examine

    commands, left_out = _plugin_commands()
    owners = {name: owner for name, (owner, _) in commands.items()}
    text, has_troubles = examine(records(), owners, left_out, is_report=report)
    click.echo(text)
    ctx.exit(1 if has_troubles else 0)


@cli.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False))
@_json_option
@click.option("--values", is_flag=True, help="Read the arrays as well, and count NaN and infinity.")
def inspect(file: str, as_json: bool, values: bool) -> None:
    """Show the contents of a file of adapters. No plugin is imported, and no model is needed."""
    from . import inspection

    _print(inspection.inspect(file, values=values), inspection.as_table, as_json)


def _print(facts: Any, as_table: Callable[[Any], Table], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(facts, indent=2))
    else:
        print_table(as_table(facts))
