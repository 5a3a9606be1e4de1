"""The classes of a file's adapters: found by the plugin that provides them, or given."""

import re
from collections.abc import Iterable, Mapping
from typing import TypeAlias

from .._contract import LoRAWrapper, check_contract
from .._errors import PluginError, SelectionError
from .._registry import Registry
from ._configuration import Entry

# The type of `wrappers=`.
Classes: TypeAlias = type[LoRAWrapper] | Iterable[type[LoRAWrapper]] | None


def classes_by_name(given: Classes) -> dict[str, type[LoRAWrapper]]:
    """The classes that a call gives.

    **Raises:** `WrapperError` if one is not an adapter class; `SelectionError` if two have one
    name, or for something else.
    """
    if isinstance(given, str) or not isinstance(given, type | Iterable | None):
        raise SelectionError(
            f"`wrappers` must be adapter classes, but is {given!r}. What plugins provide is found "
            "without it."
        )
    found: dict[str, type[LoRAWrapper]] = {}
    for cls in [given] if isinstance(given, type) else given or ():
        check_contract(cls)
        if found.setdefault(cls.__name__, cls) is not cls:
            raise SelectionError(
                f"`wrappers` has two classes of the name {cls.__name__!r}. Load the adapters of "
                "each in a call of its own, with strict=False."
            )
    return found


def class_of(
    entry: Entry, given: Mapping[str, type[LoRAWrapper]], registry: Registry
) -> type[LoRAWrapper]:
    """The class of an adapter: among those given, else in the registry.

    **Raises:** `PluginError` that says what to install or to pass.
    """
    if entry.wrapper in given:
        return given[entry.wrapper]
    try:
        provided = registry.provided(entry.distribution, entry.wrapper)
    except PluginError as err:
        advice = f"Pass it: load_adapters(..., wrappers=[{entry.wrapper}])"
        if entry.distribution is None:
            problem = f"{entry.wrapper} is a class that no plugin provides. {advice}"
        else:
            problem = f"{err}. {_how_to_install(entry) if registry.discover else advice}"
        raise PluginError(problem) from err
    if provided.version and _major_minor(provided.version) < _major_minor(entry.version):
        raise PluginError(
            f"it was saved with {entry.wrapper} of {entry.distribution} {entry.version}, which is "
            f"newer than the installed {provided.version}. {_how_to_install(entry)}"
        )
    return provided.cls


def _how_to_install(entry: Entry) -> str:
    # Package indexes and bounds do not know local versions, such as "1.0+cpu" (PEP 440).
    public = entry.version.partition("+")[0]
    bound = f">={public}" if public else ""
    return f'If you trust this file:\n    pip install -U "{entry.distribution}{bound}"\n'


def _major_minor(version: str) -> tuple[int, int]:
    """`(1, 2)` for a version such as `1.2.3`. Versions that do not parse sort first."""
    found = re.match(r"(\d{1,9})(?:\.(\d{1,9}))?", version)
    return (0, 0) if found is None else (int(found[1]), int(found[2] or 0))
