"""The hooks that a plugin may implement (pluggy project `jno_lora`)."""

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    import click

PROJECT = "jno_lora"
ENTRY_POINT_GROUP = "jno.lora"

# The version of hooks and contract. A plugin that needs a later `jno_lora_api` is left out.
API_VERSION = 1

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def jno_lora_wrappers() -> Iterable[Any]:  # pyright: ignore[reportReturnType]
    """Return the adapter classes that this plugin provides, or a `LazyAdapter` for each.

    Called when the plugin is loaded. If several threads load a plugin at the same time, each of
    them calls the hook, and all use the classes that are returned first. Import the adapters inside
    the hook, so that the plugin costs nothing until then.
    """


@hookspec(firstresult=True)
def jno_lora_sums() -> Any:
    """Return the functions that add sets of adapters up: `jno.lora.extending.Sums`.

    Called for `net.activate("a", "b")`, and for a model with a sum.
    """


@hookspec(firstresult=True)
def jno_lora_provers() -> Any:
    """Return the functions that write and check proofs in files: `jno.lora.extending.Proofs`.

    Called for `save_adapters(..., proof=inputs)` and `load_adapters(..., prove=True)`.
    """


@hookspec
def jno_lora_commands(group: "click.Group") -> None:
    """Add commands of this plugin to the command line: `group.add_command(command)`.

    Called for the help, and for a command that is not built in. `group` is empty, and only this
    plugin uses it. A command whose name is taken is left out with a warning, and so are all
    commands of a plugin that raises here. Import what a command needs inside the command.
    """


@hookspec
def jno_lora_doctor(facts: list[tuple[str, str]], troubles: list[str]) -> None:
    """Add facts and troubles that only this plugin can find to `jno-lora doctor`.

    Append pairs to `facts`, such as the name and version of a library. For each problem, append a
    text to `troubles` that includes the remedy. `doctor` exits with 1 if there is any trouble. An
    exception here is also listed as a trouble.
    """


def new_manager() -> pluggy.PluginManager:
    """A plugin manager with the hooks above."""
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(sys.modules[__name__])
    return manager
