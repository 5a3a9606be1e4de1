"""Loading one plugin, so that nothing it does can reach the others."""

import time

import pluggy

from .._errors import PluginError
from ._discovery import Found, Policy
from ._hooks import name_of, take_in
from ._hookspecs import API_VERSION
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
        name = name_of(found)
        if manager.has_plugin(name):  # left there by a load that was interrupted
            manager.unregister(name=name)
        with named_while_slow(found):
            wrappers = take_in(plugin, manager, found.distribution, found.version, name)
    except BaseException as err:
        if not isinstance(err, Exception | SystemExit):
            raise  # Ctrl-C: the next question loads it again
        if isinstance(err, SystemExit):
            err = PluginError(f"it tried to end the program: SystemExit: {err}")
        return record("failed", err)
    return record("loaded", wrappers=wrappers)
