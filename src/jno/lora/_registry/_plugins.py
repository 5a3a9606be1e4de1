"""Find, load and classify plugins: installed distributions with an entry point `jno.lora`.

Finding imports nothing. Each plugin is loaded so that nothing it does can reach the others.
"""

import os
import re
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pluggy

from .._contract import check_contract
from .._errors import PluginError
from .._paths import nearest
from . import _hookspecs
from ._hookspecs import API_VERSION, ENTRY_POINT_GROUP, PROJECT
from ._records import BROKEN, IN_PROCESS, Hook, PluginRecord, PluginStatus, RegisteredWrapper
from ._zoo_names import FIRST_PARTY

if TYPE_CHECKING:
    from importlib_metadata import EntryPoint

# Loading that takes longer than this is worth a warning.
PATIENCE = 5.0  # seconds


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
    found: list[Found] = []
    for entry in entries.select(group=ENTRY_POINT_GROUP):
        dist: Any = entry.dist
        try:
            name, version = dist.name, dist.version
        except Exception:
            # The metadata is damaged (a half-removed installation): take the name of its folder.
            name, version = Path(str(getattr(dist, "_path", "unknown"))).name.partition("-")[0], ""
        found.append(Found(entry.name, normalise(name), version, entry))
    return tuple(sorted(found, key=order))


def order(plugin: Found | PluginRecord) -> tuple[int, str, str]:
    """The sort key: first-party plugins, then by distribution and name, then of this process."""
    if plugin.distribution == IN_PROCESS:
        return (2, "", "")  # as they were registered
    return (int(plugin.distribution not in FIRST_PARTY), plugin.distribution, plugin.name)


def reason_to_block(found: Found) -> str | None:
    """Why `found` must not be imported, by `JNO_LORA_BLOCK` or `JNO_LORA_PLUGINS`, or `None`."""
    blocked, allowed = (
        {normalise(it.strip()) for it in os.environ.get(variable, "").split(",") if it.strip()}
        for variable in ("JNO_LORA_BLOCK", "JNO_LORA_PLUGINS")
    )
    if {found.distribution, normalise(found.name)} & blocked:
        return "it is named in JNO_LORA_BLOCK"
    if "JNO_LORA_PLUGINS" in os.environ and found.distribution not in {*FIRST_PARTY, *allowed}:
        return "it is not named in JNO_LORA_PLUGINS, the list of allowed distributions"
    return None


def normalise(name: str) -> str:
    """A distribution name as PEP 503 normalises it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def load(found: Found) -> PluginRecord:
    """Import an installed plugin and classify it. The record keeps any `Exception`."""
    start = time.perf_counter()

    def record(status: PluginStatus, error: Exception | None = None, *parts: Any) -> PluginRecord:
        origin = (found.name, found.distribution, found.version, found.entry_point.value)
        return PluginRecord(*origin, status, error, time.perf_counter() - start, *parts)

    try:
        if reason := reason_to_block(found):
            return record("blocked", PluginError(f"{found.distribution} is blocked: {reason}"))
        plugin = found.entry_point.load()
        wanted = getattr(plugin, "jno_lora_api", API_VERSION)
        if not isinstance(wanted, int):
            raise TypeError(f"`jno_lora_api` must be an int, but is {wanted!r}")
        if wanted > API_VERSION:
            needs = f"it was written for plugin API {wanted}, this jno-lora has {API_VERSION}"
            advice = "upgrade jno-lora, or install an older version of the plugin"
            return record("incompatible", PluginError(f"{needs}: {advice}"))
        hooks = hooks_of(plugin)
        wrappers = wrappers_of(hooks, found.distribution, found.version)
        return record("loaded", None, wrappers, hooks)
    except SystemExit as err:
        return record("failed", PluginError(f"it tried to end the program: SystemExit: {err}"))
    except Exception as err:  # not Ctrl-C: the next question loads the plugin again
        return record("failed", err)


def take_in(item: Any) -> PluginRecord:
    """Classify an adapter class, or an object with hooks, that is registered in this process."""
    hooks: tuple[Hook, ...] = ()
    if isinstance(item, type):
        check_contract(item)
        wrappers = (RegisteredWrapper(item, IN_PROCESS, ""),)
    else:
        hooks = hooks_of(item)
        wrappers = wrappers_of(hooks, IN_PROCESS, "")
    name: str = getattr(item, "__name__", repr(item))
    return PluginRecord(name, IN_PROCESS, "", name, "loaded", wrappers=wrappers, hooks=hooks)


def hooks_of(plugin: Any) -> tuple[Hook, ...]:
    """The hooks that a plugin object implements. **Raises:** `PluginError` if it has a bad one."""
    # Each object gets a manager of its own, so that one which is refused leaves nothing behind.
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(_hookspecs)
    known: list[Any] = [hook for hook in vars(manager.hook).values() if hook.has_spec()]
    names = [hook.name for hook in known]
    signatures = ", ".join(f"`{hook.name}({', '.join(hook.spec.argnames)})`" for hook in known)
    try:
        manager.register(plugin)
    except pluggy.PluginValidationError as err:
        raise PluginError(
            f"{plugin!r} implements a hook with arguments that it does not have. The hooks are "
            f"{signatures}; an implementation may leave out arguments, not add any. {err}"
        ) from err
    callers = manager.get_hookcallers(plugin) or []
    hooks = tuple(Hook(caller.name, it) for caller in callers for it in caller.get_hookimpls())
    if not hooks:
        raise PluginError(
            f"{plugin!r} implements none of the hooks. Mark its functions "
            f"{' or '.join(f'`{name}`' for name in names)} with `@jno.lora.hookimpl`."
        )
    for name in (it.name for it in hooks if not it.implementation.optionalhook):
        if name not in names:
            raise PluginError(
                f"{plugin!r} implements a hook {name!r}, which does not exist; did you mean "
                f"{nearest(name, names, n=1)[0]!r}? The hooks are {signatures}."
            )
    return hooks


def wrappers_of(
    hooks: Iterable[Hook], distribution: str, version: str
) -> tuple[RegisteredWrapper, ...]:
    """Ask a plugin for its adapter classes. **Raises:** `TypeError` or `WrapperError`."""
    classes: list[Any] = []
    for returned in (hook() for hook in hooks if hook.name == "jno_lora_wrappers"):
        if not isinstance(returned, Iterable) or isinstance(returned, str | bytes | type):
            raise TypeError(
                "`jno_lora_wrappers` must return an iterable of LoRAWrapper classes, "
                f"but returned {returned!r}"
            )
        classes += returned
    for cls in classes:
        check_contract(cls)
    unique = dict.fromkeys(classes)
    names = [cls.__name__ for cls in unique]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise TypeError(f"it provides two different adapters of one name: {', '.join(twice)}")
    return tuple(RegisteredWrapper(cls, distribution, version) for cls in unique)


def complaint_about(record: PluginRecord) -> str | None:
    """The warning about a plugin that was just loaded, if it failed or took long."""
    if record.status in BROKEN:
        return (
            f"The plugin {record.describe()} could not be loaded and is left out: "
            f"{type(record.error).__name__}: {record.error}"
        )
    # The time that our own plugins take is up to the machine, and nobody would block them.
    if record.seconds > PATIENCE and record.distribution not in FIRST_PARTY:
        return (
            f"The plugin {record.describe()} took {record.seconds:.1f} s to load. To do without "
            f"it, set the environment variable JNO_LORA_BLOCK={record.distribution}."
        )
    return None
