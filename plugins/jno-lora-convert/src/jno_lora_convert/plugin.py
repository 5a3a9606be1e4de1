"""The entry point, which is tiny so that discovery is cheap."""

from typing import TYPE_CHECKING

from jno.lora import hookimpl

if TYPE_CHECKING:
    import click

jno_lora_api = 1


@hookimpl
def jno_lora_commands(group: "click.Group") -> None:
    """Add `jno-lora convert` and `jno-lora extract`."""
    from ._commands import convert, extract

    group.add_command(convert)
    group.add_command(extract)
