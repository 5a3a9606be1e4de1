"""Find and load plugins, and record which adapters each of them provides."""

import contextlib
import dataclasses
import functools
import os
import re
import threading
import time
from collections import UserDict
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import pluggy

from .._contract.problems import check_contract, normalise_word
from .._contract.wrapper import LoRAWrapper
from .._errors import PluginError
from .hookspecs import API_VERSION, ENTRY_POINT_GROUP, new_manager

ZOO_DISTRIBUTION = "jno-lora-zoo"
ZOO_PACKAGE = ZOO_DISTRIBUTION.replace("-", "_")

IN_PROCESS = "(in-process)"  # the "distribution" of `jno.lora.register`
PluginStatus = Literal["found", "loaded", "blocked", "failed", "incompatible"]
_LOCK = threading.Lock()  # held to keep a class that was created late
BROKEN = ("failed", "incompatible")  # plugins that should have been loaded, and could not be


class LazyAdapter:
    """An adapter class that is created when `cls` is read, with the facts for looking it up.

    For plugins with so many classes that creating them all is slow. A class that can't be created
    raises when it is used, not when its plugin is loaded.

    **Arguments:**

    - `make`: creates the class. Threads that read `cls` at the same time may call `make` twice, and
        all get the first class.
    - `name`, `module`, `variant`, `auto`: the attributes of the class.

    `made` is the class, or `None` if it was not created yet.
    """

    def __init__(
        self, make: Callable[[], Any], *, name: str, module: str, variant: str | None, auto: bool
    ):
        self.__name__, self.__module__, self.variant, self.auto = name, module, variant, auto
        self.made: type[LoRAWrapper] | None = None
        self._make = make

    @property
    def cls(self) -> type[LoRAWrapper]:
        """The class, always the same object."""
        if self.made is None:
            cls = self._make()
            with _LOCK:
                self.made = self.made or cls
        assert self.made is not None
        return self.made


class ClassesByName(UserDict[str, Any]):
    """Adapter classes by name. A class is created when it is read, from the item in `data`."""

    def __init__(self, data: Mapping[str, Any]):
        self.data = dict(data)

    def __getitem__(self, name: str) -> type[LoRAWrapper]:
        item = self.data[name]
        return item if isinstance(item, type) else item.cls


@dataclasses.dataclass(frozen=True)
class RegisteredWrapper:
    """One adapter and the distribution that provides it.

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
    def name(self) -> str:
        """The name to use in `wrapper=`."""
        return self.adapter.__name__

    @property
    def qualified_name(self) -> str:
        """The name of this class alone in `wrapper=`: `"distribution:Name"`."""
        return f"{self.distribution}:{self.name}"

    @property
    def variant_word(self) -> str:
        """The variant without case and dashes, or `""`."""
        return normalise_word(self.adapter.variant or "")

    @property
    def precedence(self) -> int:
        """Whose words go first: see `precedence_of`."""
        return precedence_of(self.distribution)


@dataclasses.dataclass(frozen=True, repr=False)
class PluginRecord:
    """One plugin: its origin, its status, and the adapters that it provides.

    - `name`: the entry point's name; `value`: the module that it names.
    - `status`: `"loaded"`, `"blocked"` (by `JNO_LORA_BLOCK`), `"failed"` or `"incompatible"` (asks
        for a newer `jno_lora_api`); `"found"` before loading.
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
    status: PluginStatus = "found"
    error: BaseException | None = None
    seconds: float = 0.0
    wrappers: tuple[RegisteredWrapper, ...] = ()
    plugin: Any = None
    hooks: tuple[pluggy.HookCaller, ...] = ()
    defaults: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"PluginRecord({self.describe()}, {self.status}, {len(self.wrappers)} adapters)"

    @property
    def key(self) -> tuple[str, ...]:
        """The same for a plugin that is found again."""
        return (self.name, self.distribution, self.version, self.value)

    @property
    def package(self) -> str:
        """The name of its top-level package."""
        return re.split(r"[.:]", self.value)[0]

    def describe(self) -> str:
        """For messages: distribution, version and entry point."""
        version = f" {self.version}" if self.version else ""
        return f"{self.distribution}{version} (entry point {self.name!r} = {self.value!r})"


def why_unusable(record: PluginRecord) -> str:
    """Why a plugin cannot be used, for messages."""
    status = "has failed" if record.status == "failed" else f"is {record.status}"
    return f"{record.describe()} {status}: {type(record.error).__name__}: {record.error}"


def find_plugins(group: str = ENTRY_POINT_GROUP) -> tuple[PluginRecord, ...]:
    """The installed plugins in order, without importing them."""
    import importlib_metadata

    plugins: list[PluginRecord] = []
    for entry in importlib_metadata.entry_points(group=group):
        with contextlib.suppress(importlib_metadata.MetadataNotFound):  # half removed
            name = normalise(entry.dist.name)
            plugins.append(PluginRecord(entry.name, name, entry.dist.version, entry.value))
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


def precedence_of(distribution: str) -> int:
    """0 for the zoo, 1 for our other plugins, 2 for third parties."""
    if distribution == ZOO_DISTRIBUTION:
        return 0
    return 1 if distribution in first_party() else 2


def order(plugin: PluginRecord) -> tuple[Any, ...]:
    """The sort key: by precedence, distribution and name; then plugins of this process."""
    if plugin.distribution == IN_PROCESS:
        return (3,)  # as they were registered
    return (precedence_of(plugin.distribution), plugin.distribution, plugin.name)


def normalise(name: str) -> str:
    """A distribution name as PEP 503 normalises it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def blocked_names() -> set[str]:
    """The normalised names in the environment variable `JNO_LORA_BLOCK`."""
    names = os.environ.get("JNO_LORA_BLOCK", "").split(",")
    return {normalise(name.strip()) for name in names if name.strip()}


def is_blocked(plugin: PluginRecord) -> bool:
    return not blocked_names().isdisjoint({plugin.distribution, normalise(plugin.name)})


def import_plugin(plugin: PluginRecord) -> Any:
    """The object that the entry point of a plugin names."""
    import importlib_metadata

    return importlib_metadata.EntryPoint(plugin.name, plugin.value, "").load()


def load_plugin(plugin: PluginRecord) -> PluginRecord:
    """Import a plugin, unless it is blocked, and get its adapters. Errors are recorded."""

    def unusable(status: PluginStatus, error: BaseException) -> PluginRecord:
        return dataclasses.replace(plugin, status=status, error=error)

    if is_blocked(plugin):
        why = f"{plugin.distribution} is blocked: it is named in JNO_LORA_BLOCK"
        return unusable("blocked", PluginError(why))
    start = time.perf_counter()
    try:
        module = import_plugin(plugin)
        wanted = getattr(module, "jno_lora_api", API_VERSION)
        if wanted > API_VERSION:
            why = (
                f"it was written for plugin API {wanted}, this jno-lora has {API_VERSION}: "
                "upgrade jno-lora, or install an older version of the plugin"
            )
            return unusable("incompatible", PluginError(why))
        record = loaded(plugin, module)
    except (Exception, SystemExit) as err:  # a script without `if __name__ == "__main__"` exits
        record = unusable("failed", err)
    return dataclasses.replace(record, seconds=time.perf_counter() - start)


def loaded(record: PluginRecord, plugin: Any) -> PluginRecord:
    """The record of a plugin that is loaded: an adapter class, or an object that implements hooks.

    **Raises:** `PluginError`, `TypeError` or `WrapperError` for a mistake in the plugin.
    """
    is_class = isinstance(plugin, type)
    hooks = () if is_class else _hooks_of(plugin)
    adapters: Iterable[Any] = [plugin] if is_class else _adapters_from(hooks)
    wrappers: list[RegisteredWrapper] = []
    for adapter in dict.fromkeys(adapters):
        if not isinstance(adapter, LazyAdapter):
            check_contract(adapter)
        # The zoo's classes are the zoo's, also if an application registers them.
        is_of_zoo = adapter.__module__.partition(".")[0] == ZOO_PACKAGE
        is_by_hand = record.distribution == IN_PROCESS
        owner = ZOO_DISTRIBUTION if is_of_zoo and is_by_hand else record.distribution
        wrappers.append(RegisteredWrapper(adapter, owner, record.version))
    is_zoo = any(wrapper.distribution == ZOO_DISTRIBUTION for wrapper in wrappers)
    return dataclasses.replace(
        record,
        status="loaded",
        wrappers=tuple(wrappers),
        plugin=plugin,
        hooks=hooks,
        defaults=getattr(plugin, "jno_lora_defaults", ()) if is_zoo else (),
    )


def _adapters_from(hooks: Iterable[pluggy.HookCaller]) -> Iterable[Any]:
    """What the hook `jno_lora_wrappers` returns, if a plugin implements it."""
    for hook in hooks:
        if hook.name == "jno_lora_wrappers":
            (adapters,) = hook() or [None]  # pluggy leaves out a result of `None`
            if isinstance(adapters, Iterable):
                return adapters
            raise TypeError(
                "`jno_lora_wrappers` must return an iterable of LoRAWrapper classes, "
                f"but returned {adapters!r}"
            )
    return ()


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
