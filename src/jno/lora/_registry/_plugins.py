"""Find and load plugins, each so that nothing it does can reach the other plugins."""

import dataclasses
import importlib
import itertools
import os
import re
import sys
import time
from collections.abc import Iterable
from importlib._bootstrap import _DeadlockError  # pyright: ignore
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pluggy

from .._contract import check_contract
from .._errors import INTERRUPTS, PluginError
from .._paths import nearest
from ._hookspecs import API_VERSION, ENTRY_POINT_GROUP, new_manager
from ._hygiene import contained
from ._records import BROKEN, IN_PROCESS, PluginRecord, PluginStatus, RegisteredWrapper

if TYPE_CHECKING:
    from importlib_metadata import EntryPoint

ZOO_DISTRIBUTION = "jno-lora-zoo"
ZOO_PACKAGE = "jno_lora_zoo"

# The distributions of this project. Their plugins load first, so no third party takes a name.
_OURS = """
arrays attention bank compare conditional e3nn embedding foundax jno peft quantized recurrent
routed train zoo
"""
FIRST_PARTY = tuple(f"jno-lora-{name}" for name in _OURS.split())

PATIENCE = 5.0  # seconds: loading that takes longer is worth a warning


class InstalledPlugin(NamedTuple):
    """An entry point of a plugin, not loaded yet."""

    name: str
    distribution: str
    version: str
    entry_point: "EntryPoint"

    @property
    def module(self) -> str:
        return re.split(r"[:\s]", self.entry_point.value, maxsplit=1)[0]

    @property
    def identity(self) -> tuple[str, str, str]:
        """Equal for the same plugin when it is found again."""
        return (self.distribution, self.name, self.entry_point.value)


def find_plugins(
    distribution: str | None = None, group: str = ENTRY_POINT_GROUP
) -> tuple[InstalledPlugin, ...]:
    import importlib_metadata

    if distribution is None:
        entries = importlib_metadata.entry_points()
    else:
        try:
            entries = importlib_metadata.distribution(distribution).entry_points
        except importlib_metadata.PackageNotFoundError:
            return ()
    plugins: list[InstalledPlugin] = []
    for entry in entries.select(group=group):
        dist: Any = entry.dist
        try:
            name, version = dist.name, dist.version
        except Exception:
            # The metadata is damaged (a half-removed installation): take the name of its folder.
            name, version = Path(str(getattr(dist, "_path", "unknown"))).name.partition("-")[0], ""
        plugins.append(InstalledPlugin(entry.name, normalise(name), version, entry))
    return tuple(sorted(plugins, key=order))


def order(plugin: InstalledPlugin | PluginRecord) -> tuple[int, str, str]:
    """The sort key: first-party plugins, then by distribution and name, then of this process."""
    if plugin.distribution == IN_PROCESS:
        return (2, "", "")  # as they were registered
    return (int(plugin.distribution not in FIRST_PARTY), plugin.distribution, plugin.name)


def reason_to_block(installed: InstalledPlugin) -> str | None:
    blocked = names_in("JNO_LORA_BLOCK")
    if installed.distribution in blocked or normalise(installed.name) in blocked:
        return "it is named in JNO_LORA_BLOCK"
    allowed = {*FIRST_PARTY, *names_in("JNO_LORA_PLUGINS")}
    if "JNO_LORA_PLUGINS" in os.environ and installed.distribution not in allowed:
        return "it is not named in JNO_LORA_PLUGINS, the list of allowed distributions"
    return None


def names_in(variable: str) -> set[str]:
    """The normalised names in an environment variable, which commas separate."""
    names = os.environ.get(variable, "").split(",")
    return {normalise(name.strip()) for name in names if name.strip()}


def normalise(name: str) -> str:
    """A distribution name as PEP 503 normalises it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def load(installed: InstalledPlugin) -> PluginRecord | None:
    """As `_classified`, but nothing that the plugin changes in the whole program stays changed."""
    with contained() as effects:
        record = _classified(installed)
    if record is None:
        return None
    told = {"settings_changed": effects.settings, "prints": effects.prints}
    return dataclasses.replace(record, **told)


def _classified(installed: InstalledPlugin) -> PluginRecord | None:
    """Import an installed plugin and classify it. The record keeps any error.

    **Returns:** `None` if the plugin is still being imported, further up in this thread, or by a
    thread that waits for this thread. The plugin can be loaded later.
    """
    start = time.perf_counter()

    def record(status: PluginStatus, error: Exception | None = None, **fields: Any) -> PluginRecord:
        origin = (*installed[:3], installed.entry_point.value)
        return PluginRecord(*origin, status, error, time.perf_counter() - start, **fields)

    try:
        if reason := reason_to_block(installed):
            return record("blocked", PluginError(f"{installed.distribution} is blocked: {reason}"))
        if not _is_imported(installed.module):
            return None
        plugin = installed.entry_point.load()
        wanted = getattr(plugin, "jno_lora_api", API_VERSION)
        if not isinstance(wanted, int):
            raise TypeError(f"`jno_lora_api` must be an int, but is {wanted!r}")
        if wanted > API_VERSION:
            needs = f"it was written for plugin API {wanted}, this jno-lora has {API_VERSION}"
            advice = "upgrade jno-lora, or install an older version of the plugin"
            return record("incompatible", PluginError(f"{needs}: {advice}"))
        hooks = hooks_of(plugin)
        wrappers = wrappers_of(hooks, installed.distribution, installed.version)
        defaults = _defaults_of(plugin) if installed.distribution == ZOO_DISTRIBUTION else ()
        return record("loaded", wrappers=wrappers, hooks=hooks, defaults=defaults)
    except _DeadlockError:  # the threads import modules that wait for each other
        return None
    except INTERRUPTS:  # the next question loads the plugin again
        raise
    except Exception as err:
        return record("failed", err)
    except BaseException as err:
        what = "tried to end the program" if isinstance(err, SystemExit) else "raised"
        return record("failed", PluginError(f"it {what}: {type(err).__name__}: {err}"))


def _defaults_of(zoo: Any) -> tuple[str, ...]:
    """The names of the adapters of `wrapper=None`. **Raises:** `TypeError`."""
    defaults = getattr(zoo, "jno_lora_defaults", ())
    if isinstance(defaults, tuple) and all(isinstance(name, str) for name in defaults):
        return defaults
    raise TypeError(f"`jno_lora_defaults` must be a tuple of class names, but is {defaults!r}")


def _is_imported(module: str) -> bool:
    """Import a module and the packages around it. Returns whether all of their bodies have ended.

    Waits for other threads that import them.
    """
    for path in itertools.accumulate(module.split("."), "{}.{}".format):
        spec = getattr(importlib.import_module(path), "__spec__", None)
        if getattr(spec, "_initializing", False):
            return False
    return True


def take_in(item: Any) -> PluginRecord:
    """Classify an adapter class, or an object with hooks, that is registered in this process."""
    hooks: tuple[pluggy.HookCaller, ...] = ()
    if isinstance(item, type):
        check_contract(item)
        wrappers = (RegisteredWrapper(item, IN_PROCESS, ""),)
    else:
        hooks = hooks_of(item)
        wrappers = wrappers_of(hooks, IN_PROCESS, "")
    # Nothing is imported here: whoever has a class of the zoo has imported the zoo.
    zoo = sys.modules.get(f"{ZOO_PACKAGE}.plugin") if any(map(is_of_zoo, wrappers)) else None
    defaults = _defaults_of(zoo)
    name: str = getattr(item, "__name__", repr(item))
    origin = (name, IN_PROCESS, "", name)
    return PluginRecord(*origin, "loaded", wrappers=wrappers, hooks=hooks, defaults=defaults)


def is_of_zoo(wrapper: RegisteredWrapper) -> bool:
    """Whether the zoo provides an adapter, or somebody has registered a class of the zoo."""
    if wrapper.distribution == IN_PROCESS:
        return wrapper.cls.__module__.partition(".")[0] == ZOO_PACKAGE
    return wrapper.distribution == ZOO_DISTRIBUTION


ZOO, FIRST_PARTIES, THIRD_PARTY = range(3)


def standing(wrapper: RegisteredWrapper) -> int:
    """Who goes first where several plugins want one word: the zoo, our plugins, third parties."""
    if is_of_zoo(wrapper):
        return ZOO
    return FIRST_PARTIES if wrapper.distribution in FIRST_PARTY else THIRD_PARTY


def hooks_of(plugin: Any) -> tuple[pluggy.HookCaller, ...]:
    """The hooks that a plugin object implements. **Raises:** `PluginError` if it has a bad one."""
    manager = new_manager()
    specs = {hook.name: hook for hook in vars(manager.hook).values() if hook.has_spec()}
    signatures = ", ".join(f"`{n}({', '.join(hook.spec.argnames)})`" for n, hook in specs.items())
    try:
        manager.register(plugin)
    except pluggy.PluginValidationError as err:
        raise PluginError(
            f"{plugin!r} implements a hook with arguments that the hook does not have. The hooks "
            f"are {signatures}; an implementation may leave out arguments, not add any. {err}"
        ) from err
    hooks = tuple(manager.get_hookcallers(plugin) or ())
    if not hooks:
        raise PluginError(
            f"{plugin!r} implements none of the hooks. Mark its functions "
            f"{' or '.join(f'`{name}`' for name in specs)} with `@jno.lora.hookimpl`."
        )
    for hook in hooks:
        is_optional = all(implementation.optionalhook for implementation in hook.get_hookimpls())
        if hook.name not in specs and not is_optional:
            raise PluginError(
                f"{plugin!r} implements a hook {hook.name!r}, which does not exist; did you mean "
                f"{nearest(hook.name, specs, n=1)[0]!r}? The hooks are {signatures}."
            )
    return hooks


def wrappers_of(
    hooks: Iterable[pluggy.HookCaller], distribution: str, version: str
) -> tuple[RegisteredWrapper, ...]:
    """Ask a plugin for its adapter classes. **Raises:** `TypeError` or `WrapperError`."""
    classes: list[Any] = []
    for hook in (hook for hook in hooks if hook.name == "jno_lora_wrappers"):
        for returned in hook() or [None]:  # pluggy leaves out a result of `None`
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
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise TypeError(f"it provides two different adapters of one name: {', '.join(repeated)}")
    return tuple(RegisteredWrapper(cls, distribution, version) for cls in unique)


def complaint_about(record: PluginRecord) -> str | None:
    """The warning about a plugin that was just loaded: it failed, changed settings, took long."""
    if record.status in BROKEN:
        return (
            f"The plugin {record.describe()} could not be loaded and is left out: "
            f"{type(record.error).__name__}: {record.error}"
        )
    if record.settings_changed:
        return (
            f"The plugin {record.describe()} changed settings of the whole program while it "
            f"loaded: {'; '.join(record.settings_changed)}. They were set back, for they belong "
            f"to the program that uses the plugin.{how_to_block(record.distribution)}"
        )
    # Our own plugins are slow only on slow machines, and nobody would block them.
    if record.seconds > PATIENCE and record.distribution not in FIRST_PARTY:
        return (
            f"The plugin {record.describe()} took {record.seconds:.1f} s to load."
            f"{how_to_block(record.distribution)}"
        )
    return None


def how_to_block(distribution: str | None) -> str:
    """The end of a message about a plugin: how to do without the plugin, if it is installed."""
    if distribution in (None, IN_PROCESS):
        return ""
    variable = f"JNO_LORA_BLOCK={distribution}"
    return f" To do without this plugin, set the environment variable {variable}."
