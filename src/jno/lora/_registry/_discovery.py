"""Find plugins: installed distributions with an entry point in the group `jno.lora`.

Nothing is imported here. `importlib_metadata` itself is imported on the first search.
"""

import dataclasses
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ._hookspecs import ENTRY_POINT_GROUP
from ._records import PluginRecord
from ._zoo_names import FIRST_PARTY

if TYPE_CHECKING:
    from importlib_metadata import EntryPoint


@dataclasses.dataclass(frozen=True)
class Found:
    """An entry point of a plugin, not loaded yet."""

    distribution: str
    version: str
    entry_point: "EntryPoint"

    @property
    def name(self) -> str:
        """The entry point's name."""
        return self.entry_point.name

    @property
    def module(self) -> str:
        """The module that the entry point names."""
        return re.split(r"[:\s]", self.entry_point.value, maxsplit=1)[0]

    @property
    def identity(self) -> tuple[str, str, str]:
        """Equal for the same plugin when it is found again."""
        return (self.distribution, self.name, self.entry_point.value)


@dataclasses.dataclass(frozen=True)
class Policy:
    """Which plugins may be imported. Read from the environment when plugins are loaded."""

    allow: frozenset[str] | None
    block: frozenset[str]
    strict: bool

    @classmethod
    def from_environment(cls) -> "Policy":
        """The policy that `JNO_LORA_PLUGINS`, `JNO_LORA_BLOCK` and `JNO_LORA_STRICT` ask for."""
        allow = os.environ.get("JNO_LORA_PLUGINS")
        return cls(
            allow=None if allow is None else _names(allow),
            block=_names(os.environ.get("JNO_LORA_BLOCK", "")),
            strict=os.environ.get("JNO_LORA_STRICT", "") not in ("", "0"),
        )

    def reason_to_block(self, found: Found) -> str | None:
        """Why `found` must not be imported, or `None`."""
        if found.distribution in self.block or normalise(found.name) in self.block:
            return "it is named in JNO_LORA_BLOCK"
        if self.allow is not None and found.distribution not in self.allow | set(FIRST_PARTY):
            return "it is not named in JNO_LORA_PLUGINS, the list of allowed distributions"
        return None


def find_plugins(distribution: str | None = None) -> tuple[Found, ...]:
    """The plugins of one distribution (without a look at any other), or all that are installed."""
    import importlib_metadata

    if distribution is None:
        entries = importlib_metadata.entry_points(group=ENTRY_POINT_GROUP)
    else:
        try:
            installed = importlib_metadata.distribution(distribution)
        except importlib_metadata.PackageNotFoundError:
            return ()
        entries = installed.entry_points.select(group=ENTRY_POINT_GROUP)
    return tuple(sorted((_found(entry) for entry in entries if entry.dist is not None), key=order))


def order(plugin: Found | PluginRecord) -> tuple[bool, str, str]:
    """The sort key of installed plugins: first-party ones, then by distribution and entry name."""
    return (plugin.distribution not in FIRST_PARTY, plugin.distribution, plugin.name)


def normalise(name: str) -> str:
    """A distribution name in its one normal form (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _found(entry: "EntryPoint") -> Found:
    dist: Any = entry.dist
    try:
        return Found(normalise(dist.name), dist.version, entry)
    except Exception:
        # The metadata is damaged (a half-removed installation): take the name of its folder.
        name, _, _ = Path(str(getattr(dist, "_path", "unknown"))).name.partition("-")
        return Found(normalise(name), "", entry)


def _names(text: str) -> frozenset[str]:
    return frozenset(normalise(part.strip()) for part in text.split(",") if part.strip())
