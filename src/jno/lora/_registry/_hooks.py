"""The hooks of a plugin: registered, or refused with what is wrong, and asked for its adapters."""

from collections.abc import Iterable
from typing import Any

import pluggy

from .._contract import LoRAWrapper, check_contract
from .._errors import PluginError
from .._paths import nearest
from . import _hookspecs
from ._discovery import Found
from ._hookspecs import PROJECT
from ._records import PluginRecord, RegisteredWrapper


def manager_without_plugins() -> pluggy.PluginManager:
    """A plugin manager that knows the three hooks, and nobody who implements them."""
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(_hookspecs)
    return manager


def name_of(plugin: PluginRecord | Found) -> str:
    """The name under which the hooks of an installed plugin are registered."""
    entry = plugin.value if isinstance(plugin, PluginRecord) else plugin.entry_point.value
    return f"{plugin.distribution}/{plugin.name}/{entry}"


def former_of(plugin: Any, manager: pluggy.PluginManager) -> Any:
    """What else is registered under the name of `plugin`: a module that was made again."""
    former = manager.get_plugin(manager.get_canonical_name(plugin))
    return None if former is plugin else former


def take_in(
    plugin: Any,
    manager: pluggy.PluginManager,
    distribution: str,
    version: str,
    name: str | None = None,
) -> tuple[RegisteredWrapper, ...]:
    """Register the hooks of `plugin` and return its adapters.

    A plugin that is registered already (two distributions may name one module) is only asked. If
    this fails, what it has registered is taken out again.

    **Raises:** `PluginError` if `plugin` implements no hook, or one that does not exist or has
    other arguments; `TypeError` or `WrapperError` if what it provides are no adapter classes.
    """
    is_new = not manager.is_registered(plugin)
    try:
        if is_new:
            _register(plugin, manager, name)
        return _collect(plugin, manager, distribution, version)
    except BaseException:
        if is_new and manager.is_registered(plugin):
            manager.unregister(plugin)
        raise


def _register(plugin: Any, manager: pluggy.PluginManager, name: str | None) -> None:
    known: list[Any] = [
        manager.hook.jno_lora_wrappers,
        manager.hook.jno_lora_commands,
        manager.hook.jno_lora_select,
    ]
    hooks = ", ".join(f"`{hook.name}({', '.join(hook.spec.argnames)})`" for hook in known)
    try:
        manager.register(plugin, name)
    except pluggy.PluginValidationError as err:
        raise PluginError(
            f"{plugin!r} implements a hook with arguments that it does not have. The hooks are "
            f"{hooks}; an implementation may leave out arguments, not add any. {err}"
        ) from err
    callers = manager.get_hookcallers(plugin) or []
    if not callers:
        names = " or ".join(f"`{hook.name}`" for hook in known)
        raise PluginError(
            f"{plugin!r} implements none of the hooks. Mark its functions {names} with "
            "`@jno.lora.hookimpl`."
        )
    for caller in callers:
        implementations = (i for i in caller.get_hookimpls() if i.plugin is plugin)
        if caller.has_spec() or all(i.optionalhook for i in implementations):
            continue
        near = nearest(caller.name, [hook.name for hook in known], n=1)[0]
        raise PluginError(
            f"{plugin!r} implements a hook {caller.name!r}, which does not exist; did you mean "
            f"{near!r}? The hooks are {hooks}."
        )


def _collect(
    plugin: Any, manager: pluggy.PluginManager, distribution: str, version: str
) -> tuple[RegisteredWrapper, ...]:
    """Ask one registered plugin for its adapter classes, and check each of them."""
    wrappers: list[RegisteredWrapper] = []
    for implementation in manager.hook.jno_lora_wrappers.get_hookimpls():
        if implementation.plugin is not plugin:
            continue
        classes: Any = implementation.function()
        if not isinstance(classes, Iterable) or isinstance(classes, str | bytes | type):
            raise TypeError(
                "`jno_lora_wrappers` must return an iterable of LoRAWrapper classes, "
                f"but returned {classes!r}"
            )
        for cls in classes:
            check_contract(cls)
            wrappers.append(RegisteredWrapper(cls, distribution, version))
    names = [w.name for w in wrappers]
    twice = sorted({w.name for w in wrappers if names.count(w.name) > 1 and not _same(w, wrappers)})
    if twice:
        raise TypeError(f"it provides two different adapters of one name: {', '.join(twice)}")
    return tuple(dict.fromkeys(wrappers))


def _same(wrapper: RegisteredWrapper, wrappers: list[RegisteredWrapper]) -> bool:
    classes: set[type[LoRAWrapper]] = {w.cls for w in wrappers if w.name == wrapper.name}
    return len(classes) == 1
