"""The plugins as commands see them: their records without warnings, and the commands they add."""

import warnings
from collections.abc import Collection

import click

from .._registry import PluginRecord, default_registry


def records() -> tuple[PluginRecord, ...]:
    """The records of all plugins, without warnings: a command shows which plugins are broken."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return default_registry().records(strict=False)


def plugin_commands(builtin: Collection[str]) -> tuple[dict[str, click.Command], list[str]]:
    """The commands that plugins add, by name, and a line for each that is left out.

    Each plugin gets an empty group, so that it cannot touch the commands of other plugins.

    - `builtin`: the names of the built-in commands, which no plugin can take.
    """
    records()  # loads the plugins without their warnings
    commands: dict[str, click.Command] = {}
    left_out: list[str] = []
    for record, add_commands in default_registry().hooks("jno_lora_commands"):
        plugin, group = record.describe(), click.Group()
        try:
            add_commands(group=group)
            added = dict(group.commands)
            if not all(isinstance(command, click.Command) for command in added.values()):
                raise TypeError(f"these are not all commands of click: {added}")
        except (Exception, SystemExit) as err:
            left_out.append(f"the commands of {plugin}: {type(err).__name__}: {err}")
            continue
        for name, command in added.items():
            if name in commands or name in builtin:
                left_out.append(f"the command {name!r} of {plugin}: the name is taken")
            else:
                commands[name] = command
    return commands, left_out
