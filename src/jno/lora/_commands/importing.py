"""`MODULE:NAME` on a command line: the object that it names."""

import importlib
from typing import Any

from .._errors import PluginError


def find(what: str, example: str) -> Any:
    """The object that `what` names.

    **Raises:** `PluginError` that shows `example`, if there is none.
    """
    module_name, _, name = what.partition(":")
    try:
        return getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError, ValueError) as err:
        raise PluginError(
            f"{what!r} cannot be imported: {err}. Give the module's import path and a name in it, "
            f"such as {example}, and run this where the module can be imported."
        ) from err
