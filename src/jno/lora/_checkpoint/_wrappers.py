"""The classes of a file's adapters: found by the plugin that provides them, or given."""

import re
from collections.abc import Iterable
from typing import TypeAlias

from .._contract import LoRAWrapper, check_contract
from .._errors import PluginError, SelectionError
from .._registry import IN_PROCESS, RegisteredWrapper, Registry
from ._configuration import Entry

# The type of `wrappers=`.
Classes: TypeAlias = type[LoRAWrapper] | Iterable[type[LoRAWrapper]] | None


def provider_of(cls: type[LoRAWrapper], registry: Registry) -> RegisteredWrapper | None:
    """The plugin that provides `cls`. `None` for a class of this process."""
    provider = registry.provider_of(cls)
    return None if provider is None or provider.distribution == IN_PROCESS else provider


class Wrappers:
    """Finds the class of each adapter in a file: among those given, else in the registry."""

    def __init__(self, given: Classes, registry: Registry):
        self._given: dict[str, type[LoRAWrapper]] = {}
        if isinstance(given, str) or not isinstance(given, type | Iterable | None):
            raise SelectionError(
                f"`wrappers` must be adapter classes, but is {given!r}. What plugins provide is "
                "found without it."
            )
        for cls in [given] if isinstance(given, type) else given or ():
            check_contract(cls)
            if self._given.setdefault(cls.__name__, cls) is not cls:
                raise SelectionError(
                    f"`wrappers` has two classes of the name {cls.__name__!r}. Load the adapters "
                    "of each in a call of its own, with strict=False."
                )
        self._registry = registry
        self._found: dict[tuple[str | None, str, str], type[LoRAWrapper] | PluginError] = {}

    def find(self, entry: Entry) -> type[LoRAWrapper] | PluginError:
        """The class of this adapter, or the error that says what to install or to pass."""
        key = (entry.distribution, entry.version, entry.wrapper)
        if key not in self._found:
            try:
                self._found[key] = self._find(entry)
            except PluginError as err:
                self._found[key] = err
        return self._found[key]

    def _find(self, entry: Entry) -> type[LoRAWrapper]:
        if entry.wrapper in self._given:
            return self._given[entry.wrapper]
        try:
            provided = self._registry.provided(entry.distribution, entry.wrapper)
        except PluginError as err:
            advice = f"Pass it: load_adapters(..., wrappers=[{entry.wrapper}])"
            if entry.distribution is None:
                raise PluginError(
                    f"{entry.wrapper} is a class that no plugin provides. {advice}"
                ) from err
            if not self._registry.discover:
                raise PluginError(f"{err}. {advice}") from err
            raise PluginError(f"{err}. {_how_to_install(entry)}") from err
        if provided.version and _major_minor(provided.version) < _major_minor(entry.version):
            raise PluginError(
                f"it was saved with {entry.wrapper} of {entry.distribution} {entry.version}, which "
                f"is newer than the installed {provided.version}. {_how_to_install(entry)}"
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
