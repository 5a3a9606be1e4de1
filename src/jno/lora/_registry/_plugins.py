"""Find and load plugins, and record the results."""

import contextlib
import dataclasses
import functools
import os
import re
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import pluggy

from .._contract import LoRAWrapper, check_contract, squash
from .._errors import PluginError
from ._hookspecs import API_VERSION, ENTRY_POINT_GROUP, FORMER_GROUP, new_manager
from ._lazy import LazyAdapter

if TYPE_CHECKING:
    from importlib_metadata import EntryPoint

ZOO_DISTRIBUTION = "jno-lora-zoo"
ZOO_PACKAGE = "jno_lora_zoo"

IN_PROCESS = "(in-process)"  # the "distribution" of `jno.lora.register`
PluginStatus = Literal["loaded", "blocked", "failed", "incompatible"]
BROKEN = ("failed", "incompatible")  # plugins that should have been loaded, and could not be


@dataclasses.dataclass(frozen=True)
class RegisteredWrapper:
    """One adapter and the plugin that provides it.

    `adapter` has the name, the variant and `auto` of the class, without creating the class.
    """

    adapter: type[LoRAWrapper] | LazyAdapter
    distribution: str
    version: str

    @property
    def cls(self) -> type[LoRAWrapper]:
        """The class. **Raises:** `WrapperError` if it is created late and breaks the contract."""
        if isinstance(self.adapter, type):
            return self.adapter  # which was checked when its plugin was loaded
        check_contract(self.adapter.cls)
        return self.adapter.cls

    @property
    def identity(self) -> object:
        """The class, or the `LazyAdapter` of a class that was not created yet."""
        return (isinstance(self.adapter, LazyAdapter) and self.adapter.made) or self.adapter

    @property
    def name(self) -> str:
        """The name to use in `wrapper=`."""
        return self.adapter.__name__

    @property
    def variant_word(self) -> str:
        """The variant without case and dashes, or `""`."""
        return squash(self.adapter.variant or "")

    @property
    def qualified_name(self) -> str:
        """The name to use in `wrapper=` where `name` is ambiguous: `"distribution:Name"`."""
        return f"{self.distribution}:{self.name}"


@dataclasses.dataclass(frozen=True, repr=False)
class PluginRecord:
    """One plugin: its origin, its status, and the adapters that it provides.

    - `name`: the entry point's name; `value`: the module that it names.
    - `status`: `"loaded"`, `"blocked"` (by `JNO_LORA_PLUGINS` or `JNO_LORA_BLOCK`), `"failed"` or
        `"incompatible"` (asks for a newer `jno_lora_api`).
    - `error`: the exception, or the reason, if the status is not `"loaded"`.
    - `seconds`: how long loading took.
    - `plugin`: the object that implements the hooks, if the plugin is loaded.
    - `hooks`: the hooks that the plugin implements; pluggy's callers, which call this plugin alone.
    - `defaults`: the names of the adapters of `wrapper=None`. Only the zoo has any.
    """

    name: str
    distribution: str
    version: str
    value: str
    status: PluginStatus
    error: BaseException | None = None
    seconds: float = 0.0
    wrappers: tuple[RegisteredWrapper, ...] = ()
    plugin: Any = None
    hooks: tuple[pluggy.HookCaller, ...] = ()
    defaults: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"PluginRecord({self.describe()}, {self.status}, {len(self.wrappers)} adapters)"

    @property
    def usable(self) -> bool:
        """Whether its adapters can be used."""
        return self.status == "loaded"

    def describe(self) -> str:
        """For messages: distribution, version and entry point."""
        version = f" {self.version}" if self.version else ""
        return f"{self.distribution}{version} (entry point {self.name!r} = {self.value!r})"


def why_unusable(record: PluginRecord) -> str:
    status = "has failed" if record.status == "failed" else f"is {record.status}"
    return f"{record.describe()} {status}: {type(record.error).__name__}: {record.error}"


class InstalledPlugin(NamedTuple):
    """An entry point of a plugin, not loaded yet."""

    name: str
    distribution: str
    version: str
    entry_point: "EntryPoint"

    @property
    def origin(self) -> tuple[str, str, str, str]:
        """The first fields of a `PluginRecord`, equal if the same plugin is found again."""
        return (self.name, self.distribution, self.version, self.entry_point.value)


def find_plugins(
    distribution: str | None = None, group: str = ENTRY_POINT_GROUP
) -> tuple[InstalledPlugin, ...]:
    """The plugins of one distribution, or of all: ours first, then by distribution and name.

    If a distribution is not installed, its adapters may have moved to another distribution, which
    declares this.
    """
    import importlib_metadata

    if distribution is None:
        entries = importlib_metadata.entry_points()
    else:
        try:
            entries = importlib_metadata.distribution(distribution).entry_points
        except importlib_metadata.PackageNotFoundError:
            name = normalise(distribution)
            successors = importlib_metadata.entry_points(group=FORMER_GROUP, name=name)
            return next((find_plugins(entry.dist.name) for entry in successors), ())
    plugins: list[InstalledPlugin] = []
    for entry in entries.select(group=group):
        with contextlib.suppress(importlib_metadata.MetadataNotFound):  # half removed
            name = normalise(entry.dist.name)
            plugins.append(InstalledPlugin(entry.name, name, entry.dist.version, entry))
    return tuple(sorted(plugins, key=order))


@functools.cache
def first_party() -> frozenset[str]:
    """The distributions of this project, which the extras of jno-lora name."""
    import importlib_metadata

    try:
        needs = importlib_metadata.requires("jno-lora") or ()
    except importlib_metadata.PackageNotFoundError:  # imported without being installed
        needs = ()
    names = {normalise(re.split(r"[^\w.-]", need)[0]) for need in needs}
    return frozenset(name for name in names if name.startswith("jno-lora-"))


def order(plugin: InstalledPlugin | PluginRecord) -> tuple[int, str, str]:
    """The sort key: first-party plugins, then by distribution and name, then of this process."""
    if plugin.distribution == IN_PROCESS:
        return (2, "", "")  # as they were registered
    return (int(plugin.distribution not in first_party()), plugin.distribution, plugin.name)


def standing(wrapper: RegisteredWrapper) -> int:
    """The precedence for a word: 0 for the zoo, 1 for our plugins, 2 for third parties."""
    if is_of_zoo(wrapper):
        return 0
    return 1 if wrapper.distribution in first_party() else 2


def is_of_zoo(wrapper: RegisteredWrapper) -> bool:
    """Whether the zoo provides an adapter, or a user registered the zoo's class."""
    if wrapper.distribution == IN_PROCESS:
        return wrapper.adapter.__module__.partition(".")[0] == ZOO_PACKAGE
    return wrapper.distribution == ZOO_DISTRIBUTION


def normalise(name: str) -> str:
    """A distribution name as PEP 503 normalises it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def names_in(variable: str) -> set[str]:
    """The normalised names in a comma-separated environment variable."""
    names = os.environ.get(variable, "").split(",")
    return {normalise(name.strip()) for name in names if name.strip()}


def reason_to_block(installed: InstalledPlugin) -> str | None:
    blocked = names_in("JNO_LORA_BLOCK")
    if installed.distribution in blocked or normalise(installed.name) in blocked:
        return "it is named in JNO_LORA_BLOCK"
    allowed = {*first_party(), *names_in("JNO_LORA_PLUGINS")}
    if "JNO_LORA_PLUGINS" in os.environ and installed.distribution not in allowed:
        return "it is not named in JNO_LORA_PLUGINS, the list of allowed distributions"
    return None


def load_plugin(plugin: InstalledPlugin) -> PluginRecord:
    """Import a plugin, unless it is blocked, and get its adapters. Errors are recorded."""
    if reason := reason_to_block(plugin):
        error = PluginError(f"{plugin.distribution} is blocked: {reason}")
        return PluginRecord(*plugin.origin, "blocked", error)
    start = time.perf_counter()
    try:
        module = plugin.entry_point.load()
        wanted = getattr(module, "jno_lora_api", API_VERSION)
        if wanted > API_VERSION:
            needs = f"it was written for plugin API {wanted}, this jno-lora has {API_VERSION}"
            advice = "upgrade jno-lora, or install an older version of the plugin"
            return PluginRecord(*plugin.origin, "incompatible", PluginError(f"{needs}: {advice}"))
        record = record_of(module, *plugin.origin)
    except (Exception, SystemExit) as err:  # a script without `if __name__ == "__main__"` exits
        record = PluginRecord(*plugin.origin, "failed", err)
    return dataclasses.replace(record, seconds=time.perf_counter() - start)


def record_of(plugin: Any, name: str, distribution: str, version: str, value: str) -> PluginRecord:
    """The record of an object that implements hooks.

    **Raises:** `PluginError`, `TypeError` or `WrapperError` for a mistake in the plugin.
    """
    hooks = _hooks_of(plugin)
    adapters: dict[Any, None] = {}
    for hook in hooks:
        if hook.name == "jno_lora_wrappers":
            (returned,) = hook() or [None]  # pluggy leaves out a result of `None`
            if not isinstance(returned, Iterable):
                raise TypeError(
                    "`jno_lora_wrappers` must return an iterable of LoRAWrapper classes, "
                    f"but returned {returned!r}"
                )
            adapters = dict.fromkeys(returned)
    for adapter in adapters:
        if not isinstance(adapter, LazyAdapter):
            check_contract(adapter)
    wrappers = tuple(RegisteredWrapper(adapter, distribution, version) for adapter in adapters)
    defaults = getattr(plugin, "jno_lora_defaults", ()) if any(map(is_of_zoo, wrappers)) else ()
    origin = (name, distribution, version, value)
    return PluginRecord(
        *origin, "loaded", wrappers=wrappers, plugin=plugin, hooks=hooks, defaults=defaults
    )


def _hooks_of(plugin: Any) -> tuple[pluggy.HookCaller, ...]:
    """The hooks that a plugin object implements. **Raises:** `PluginError` if one is invalid."""
    manager = new_manager()
    specs = [hook.spec for hook in vars(manager.hook).values()]
    try:
        manager.register(plugin)
        manager.check_pending()
        if hooks := manager.get_hookcallers(plugin):
            return tuple(hooks)
        problem = f"{plugin!r} implements none of the hooks. Mark its functions"
        raise pluggy.PluginValidationError(plugin, f"{problem} with `@jno.lora.hookimpl`")
    except pluggy.PluginValidationError as err:
        signatures = (f"`{spec.name}({', '.join(spec.argnames)})`" for spec in specs)
        raise PluginError(f"{err}. The hooks are {', '.join(signatures)}") from err


def how_to_block(distribution: str | None) -> str:
    """The end of a message about a plugin: how to do without the plugin, if it is installed."""
    variable = f"JNO_LORA_BLOCK={distribution}"
    advice = f" To do without this plugin, set the environment variable {variable}."
    return "" if distribution in (None, IN_PROCESS) else advice
