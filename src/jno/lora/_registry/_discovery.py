"""Find plugins: installed distributions with an entry point `jno.lora`. Imports none of them."""

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ._hookspecs import ENTRY_POINT_GROUP
from ._records import IN_PROCESS, PluginRecord
from ._zoo_names import FIRST_PARTY

if TYPE_CHECKING:
    from importlib_metadata import EntryPoint


class Found(NamedTuple):
    """An entry point of a plugin, not loaded yet."""

    name: str
    distribution: str
    version: str
    entry_point: "EntryPoint"

    @property
    def module(self) -> str:
        """The module that the entry point names."""
        return re.split(r"[:\s]", self.entry_point.value, maxsplit=1)[0]

    @property
    def identity(self) -> tuple[str, str, str]:
        """Equal for the same plugin when it is found again."""
        return (self.distribution, self.name, self.entry_point.value)


def find_plugins(distribution: str | None = None) -> tuple[Found, ...]:
    """The plugins of one distribution (without a look at any other), or all that are installed."""
    import importlib_metadata

    if distribution is None:
        entries = importlib_metadata.entry_points()
    else:
        try:
            entries = importlib_metadata.distribution(distribution).entry_points
        except importlib_metadata.PackageNotFoundError:
            return ()
    ours = entries.select(group=ENTRY_POINT_GROUP)
    return tuple(sorted((_found(entry) for entry in ours if entry.dist is not None), key=order))


def order(plugin: Found | PluginRecord) -> tuple[int, str, str]:
    """The sort key: first-party plugins, then by distribution and name, then of this process."""
    if plugin.distribution == IN_PROCESS:
        return (2, "", "")  # as they were registered
    return (int(plugin.distribution not in FIRST_PARTY), plugin.distribution, plugin.name)


def reason_to_block(found: Found) -> str | None:
    """Why `found` must not be imported, by `JNO_LORA_BLOCK` or `JNO_LORA_PLUGINS`, or `None`."""
    if {found.distribution, normalise(found.name)} & _listed_in("JNO_LORA_BLOCK"):
        return "it is named in JNO_LORA_BLOCK"
    allowed = {*FIRST_PARTY, *_listed_in("JNO_LORA_PLUGINS")}
    if "JNO_LORA_PLUGINS" in os.environ and found.distribution not in allowed:
        return "it is not named in JNO_LORA_PLUGINS, the list of allowed distributions"
    return None


def _listed_in(variable: str) -> set[str]:
    names = os.environ.get(variable, "").split(",")
    return {normalise(name.strip()) for name in names if name.strip()}


def normalise(name: str) -> str:
    """A distribution name as PEP 503 normalises it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _found(entry: "EntryPoint") -> Found:
    dist: Any = entry.dist
    try:
        return Found(entry.name, normalise(dist.name), dist.version, entry)
    except Exception:
        # The metadata is damaged (a half-removed installation): take the name of its folder.
        name, _, _ = Path(str(getattr(dist, "_path", "unknown"))).name.partition("-")
        return Found(entry.name, normalise(name), "", entry)
