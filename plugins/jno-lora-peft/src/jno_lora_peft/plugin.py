"""The entry point, which is tiny so that discovery is cheap."""

from typing import TYPE_CHECKING

from jno.lora import hookimpl

if TYPE_CHECKING:
    import click

jno_lora_api = 1


@hookimpl
def jno_lora_commands(group: "click.Group") -> None:
    """Add `jno-lora inspect-peft`."""
    from ._commands import inspect_peft

    group.add_command(inspect_peft)
