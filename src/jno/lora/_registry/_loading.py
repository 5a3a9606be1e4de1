"""Loading one plugin, so that nothing it does can reach the others."""

import time
from collections.abc import Iterable
from typing import Any

import pluggy

from .._contract import LoRAWrapper
from .._contract_problems import check_contract
from .._errors import PluginError
from .._hookspecs import API_VERSION
from ._discovery import Found, Policy
from ._records import PluginRecord, PluginStatus, RegisteredWrapper
from ._waiting import named_while_slow


def load(found: Found, manager: pluggy.PluginManager, policy: Policy) -> PluginRecord:
    """Import the plugin, check it, register its hooks and collect its adapters.

    Never raises an `Exception`: what goes wrong is kept in the record.
    """
    start = time.perf_counter()

    def record(
        status: PluginStatus,
        error: Exception | None = None,
        wrappers: tuple[RegisteredWrapper, ...] = (),
    ) -> PluginRecord:
        return PluginRecord(
            name=found.name,
            distribution=found.distribution,
            version=found.version,
            value=found.entry_point.value,
            status=status,
            error=error,
            seconds=time.perf_counter() - start,
            wrappers=wrappers,
        )

    blocked = policy.reason_to_block(found)
    if blocked:
        return record("blocked", PluginError(f"{found.distribution} is blocked: {blocked}"))
    plugin = None
    try:
        with named_while_slow(found):
            plugin = found.entry_point.load()
        wanted = getattr(plugin, "jno_lora_api", API_VERSION)
        if not isinstance(wanted, int):
            raise TypeError(f"`jno_lora_api` must be an int, but is {wanted!r}")
        if wanted > API_VERSION:
            error = PluginError(
                f"it was written for plugin API {wanted}, this jno-lora has {API_VERSION}: "
                "upgrade jno-lora, or install an older version of the plugin"
            )
            return record("incompatible", error)
        name = "/".join(found.identity)
        if manager.has_plugin(name):  # left there by a load that was interrupted
            manager.unregister(name=name)
        manager.register(plugin, name=name)
        with named_while_slow(found):
            wrappers = collect(plugin, manager, found.distribution, found.version)
    except BaseException as err:
        if plugin is not None and manager.is_registered(plugin):
            manager.unregister(plugin)
        if not isinstance(err, Exception | SystemExit):
            raise  # Ctrl-C: the next question loads it again
        if isinstance(err, SystemExit):
            err = PluginError(f"it tried to end the program: SystemExit: {err}")
        return record("failed", err)
    return record("loaded", wrappers=wrappers)


def collect(
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
