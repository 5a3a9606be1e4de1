"""The zoo's entry point. It imports the adapters only when they are needed."""

import inspect
from collections.abc import Iterable
from types import ModuleType
from typing import TYPE_CHECKING

from jno.lora import LoRAWrapper, hookimpl
from jno.lora.extending import LazyAdapter

if TYPE_CHECKING:
    import click

jno_lora_api = 1
# The adapters of `net.lora(rank=4)`, in order of priority. The core asks only the zoo for them.
jno_lora_defaults: tuple[str, ...] = ("LoRALinear", "LoRAConv")


@hookimpl
def jno_lora_wrappers() -> Iterable[LazyAdapter]:
    """Every adapter of `adapters.py`. Its class is made on first use."""
    from .adapters import ADAPTERS

    return ADAPTERS.data.values()


@hookimpl
def jno_lora_commands(group: "click.Group") -> None:
    """Add `jno-lora adapters`."""
    from ._listing import adapters

    group.add_command(adapters)


def adapters_defined_in(module: ModuleType) -> list[type[LoRAWrapper]]:
    """The adapter classes that a module defines, without imported classes and methods.

    If the module has a mapping `ADAPTERS`, the classes in it are made.
    """
    return [
        cls
        for cls in [*vars(module).values(), *getattr(module, "ADAPTERS", {}).values()]
        if isinstance(cls, type)
        and cls.__module__ == module.__name__
        and issubclass(cls, LoRAWrapper)
        and not inspect.isabstract(cls)
    ]
