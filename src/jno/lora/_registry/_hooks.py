"""Classify a plugin object: the hooks that it implements, and the adapters that it provides."""

from collections.abc import Iterable
from typing import Any

import pluggy

from .._contract import check_contract
from .._errors import PluginError
from .._paths import nearest
from . import _hookspecs
from ._hookspecs import PROJECT
from ._records import Hook, RegisteredWrapper


def hooks_of(plugin: Any) -> tuple[Hook, ...]:
    """The hooks that a plugin object implements.

    **Raises:** `PluginError` if it implements no hook, or one that does not exist or has other
    arguments.
    """
    # Each object gets a manager of its own, so that one which is refused leaves nothing behind.
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(_hookspecs)
    known: list[Any] = [hook for hook in vars(manager.hook).values() if hook.has_spec()]
    signatures = ", ".join(f"`{hook.name}({', '.join(hook.spec.argnames)})`" for hook in known)
    try:
        manager.register(plugin)
    except pluggy.PluginValidationError as err:
        raise PluginError(
            f"{plugin!r} implements a hook with arguments that it does not have. The hooks are "
            f"{signatures}; an implementation may leave out arguments, not add any. {err}"
        ) from err
    callers = manager.get_hookcallers(plugin) or []
    if not callers:
        names = " or ".join(f"`{hook.name}`" for hook in known)
        raise PluginError(
            f"{plugin!r} implements none of the hooks. Mark its functions {names} with "
            "`@jno.lora.hookimpl`."
        )
    hooks = tuple(Hook(caller.name, it) for caller in callers for it in caller.get_hookimpls())
    names = [hook.name for hook in known]
    for hook in hooks:
        if hook.name in names or hook.implementation.optionalhook:
            continue
        raise PluginError(
            f"{plugin!r} implements a hook {hook.name!r}, which does not exist; did you mean "
            f"{nearest(hook.name, names, n=1)[0]!r}? The hooks are {signatures}."
        )
    return hooks


def wrappers_of(
    hooks: Iterable[Hook], distribution: str, version: str
) -> tuple[RegisteredWrapper, ...]:
    """Ask a plugin for its adapter classes, and check each of them.

    **Raises:** `TypeError` or `WrapperError` if it provides anything but adapter classes.
    """
    classes: list[Any] = []
    for hook in hooks:
        if hook.name != "jno_lora_wrappers":
            continue
        returned = hook()
        if not isinstance(returned, Iterable) or isinstance(returned, str | bytes | type):
            raise TypeError(
                "`jno_lora_wrappers` must return an iterable of LoRAWrapper classes, "
                f"but returned {returned!r}"
            )
        classes += returned
    for cls in classes:
        check_contract(cls)
    unique = tuple(dict.fromkeys(classes))
    names = [cls.__name__ for cls in unique]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise TypeError(f"it provides two different adapters of one name: {', '.join(twice)}")
    return tuple(RegisteredWrapper(cls, distribution, version) for cls in unique)
