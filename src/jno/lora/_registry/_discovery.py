"""Finding plugins: installed distributions with an entry point in the group `jno.lora`.

Nothing is imported here. `importlib_metadata` itself is imported on the first search.
"""

import dataclasses
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ._hookspecs import ENTRY_POINT_GROUP
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
    def package(self) -> str:
        """The top-level package of its module."""
        return re.split(r"[.:\s]", self.entry_point.value, maxsplit=1)[0]

    @property
    def identity(self) -> tuple[str, str, str]:
        """What makes this plugin the same one when it is found again."""
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


def find_plugins() -> tuple[Found, ...]:
    """Every plugin installed, first-party ones first, then by distribution and entry name."""
    import importlib_metadata

    entries = importlib_metadata.entry_points(group=ENTRY_POINT_GROUP)
    return _sorted(_found(entry) for entry in entries if entry.dist is not None)


def find_plugins_of(distribution: str) -> tuple[Found, ...]:
    """The plugins of one distribution, without looking at any other. Empty if not installed."""
    import importlib_metadata

    try:
        dist = importlib_metadata.distribution(distribution)
    except importlib_metadata.PackageNotFoundError:
        return ()
    entries = dist.entry_points.select(group=ENTRY_POINT_GROUP)
    return _sorted(_found(entry) for entry in entries)


def normalise(name: str) -> str:
    """A distribution name in its one normal form (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _found(entry: "EntryPoint") -> Found:
    dist: Any = entry.dist
    try:
        return Found(normalise(dist.name), dist.version, entry)
    except Exception:
        # Metadata that is damaged (a half-removed installation): what the folder is called must do.
        name, _, _ = Path(str(getattr(dist, "_path", "unknown"))).name.partition("-")
        return Found(normalise(name), "", entry)


def _sorted(found: Iterable[Found]) -> tuple[Found, ...]:
    def order(plugin: Found) -> tuple[bool, str, str]:
        return (plugin.distribution not in FIRST_PARTY, plugin.distribution, plugin.name)

    return tuple(sorted(found, key=order))


def _names(text: str) -> frozenset[str]:
    return frozenset(normalise(part.strip()) for part in text.split(",") if part.strip())
