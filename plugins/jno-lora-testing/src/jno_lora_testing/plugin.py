"""The entry point, kept tiny so that discovery is fast."""

from typing import TYPE_CHECKING

from jno.lora import hookimpl

if TYPE_CHECKING:
    import click

jno_lora_api = 1


@hookimpl
def jno_lora_commands(group: "click.Group") -> None:
    """Add `jno-lora check` and `jno-lora new`."""
    from ._commands import check, new

    group.add_command(check)
    group.add_command(new)
