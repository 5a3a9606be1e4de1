"""`jno-lora doctor`: whether this installation is in order."""

import dataclasses
import platform

import jno

from .. import __path__ as _package_path, in_jno
from .._in_jno import describe_jno, find_bad_installs, jno_version
from .._registry import ZOO_DISTRIBUTION, PluginRecord
from .listing import error_traceback

# A plugin that takes longer to import is worth a look. The zoo takes a few hundredths.
SLOW_SECONDS = 1.0

_DISTRIBUTIONS = (
    "jno-lora",
    "jax",
    "jaxlib",
    "equinox",
    "pluggy",
    "importlib-metadata",
    "safetensors",
)


@dataclasses.dataclass(frozen=True)
class Diagnosis:
    """What was found: facts, in the order of printing, and troubles with what to do."""

    facts: tuple[tuple[str, str], ...]
    troubles: tuple[str, ...]


def diagnose(records: tuple[PluginRecord, ...]) -> Diagnosis:
    """Look at versions, at who owns the package `jno`, and at every plugin."""
    import importlib_metadata

    versions: list[tuple[str, str]] = [("Python", platform.python_version())]
    for name in _DISTRIBUTIONS:
        try:
            versions.append((name, importlib_metadata.version(name)))
        except importlib_metadata.PackageNotFoundError:
            versions.append((name, "not installed as a distribution"))
    facts = [
        *versions,
        ("jno.lora imported from", str(next(iter(_package_path)))),
        *_facts_of_jno(),
        *((f"{r.distribution} {r.version}", f"{r.status}, {r.seconds:.2f} s") for r in records),
    ]
    around = getattr(jno, "__file__", None)
    troubles = [*find_bad_installs(list(_package_path), around), *_without_zoo(records)]
    for record in records:
        if record.status in ("failed", "incompatible"):
            troubles.append(
                f"The plugin {record.describe()} is {record.status}. Upgrade or uninstall it, or "
                f"block it with JNO_LORA_BLOCK={record.distribution}.\n{error_traceback(record)}"
            )
        elif record.status == "conflict":
            troubles.append(f"The plugin {record.describe()} is in conflict: {record.error}")
        if record.seconds > SLOW_SECONDS:
            troubles.append(
                f"The plugin {record.describe()} took {record.seconds:.1f} s to load; more than "
                f"{SLOW_SECONDS:g} s is slow. Its entry point should import nothing heavy."
            )
    return Diagnosis(tuple(facts), tuple(troubles))


def _facts_of_jno() -> list[tuple[str, str]]:
    """Whether an installed jNO uses these adapters."""
    if jno_version() is None:
        return []
    return [(describe_jno(), "ours inside" if in_jno.is_enabled() else "uses its own adapters")]


def _without_zoo(records: tuple[PluginRecord, ...]) -> list[str]:
    zoo = [record for record in records if record.distribution == ZOO_DISTRIBUTION]
    if any(record.usable for record in zoo):
        return []
    if any(record.status == "blocked" for record in zoo):
        return [f"`net.lora()` has no adapters to use: {zoo[0].error}"]
    if zoo:
        return []  # it failed, which is reported as such
    return [
        "The adapter zoo is not installed, so that `net.lora()` has no adapters to use. "
        'Install it: pip install "jno-lora[zoo]"'
    ]
