"""Load one plugin, so that nothing it does can reach the others."""

import time
from typing import Any

from .._contract import check_contract
from .._errors import PluginError
from ._discovery import Found, reason_to_block
from ._hooks import hooks_of, wrappers_of
from ._hookspecs import API_VERSION
from ._records import IN_PROCESS, Hook, PluginRecord, PluginStatus, RegisteredWrapper
from ._zoo_names import FIRST_PARTY

# Loading that takes longer than this is worth a warning.
PATIENCE = 5.0  # seconds


def load(found: Found) -> PluginRecord:
    """Import an installed plugin, check it, and collect its hooks and adapters.

    Never raises an `Exception`: an error is kept in the record.
    """
    start = time.perf_counter()
    status: PluginStatus = "failed"
    error: Exception | None = None
    hooks: tuple[Hook, ...] = ()
    wrappers: tuple[RegisteredWrapper, ...] = ()
    try:
        if reason := reason_to_block(found):
            status = "blocked"
            raise PluginError(f"{found.distribution} is blocked: {reason}")
        plugin = found.entry_point.load()
        wanted = getattr(plugin, "jno_lora_api", API_VERSION)
        if not isinstance(wanted, int):
            raise TypeError(f"`jno_lora_api` must be an int, but is {wanted!r}")
        if wanted > API_VERSION:
            status = "incompatible"
            raise PluginError(
                f"it was written for plugin API {wanted}, this jno-lora has {API_VERSION}: "
                "upgrade jno-lora, or install an older version of the plugin"
            )
        implemented = hooks_of(plugin)
        wrappers = wrappers_of(implemented, found.distribution, found.version)
        status, hooks = "loaded", implemented
    except SystemExit as err:
        error = PluginError(f"it tried to end the program: SystemExit: {err}")
    except Exception as err:  # not Ctrl-C: the next question loads the plugin again
        error = err
    origin = (found.name, found.distribution, found.version, found.entry_point.value)
    return PluginRecord(*origin, status, error, time.perf_counter() - start, wrappers, hooks)


def take_in(item: Any) -> PluginRecord:
    """Check an adapter class, or an object with hooks, that is registered in this process.

    **Raises:** `WrapperError` if a class breaks the contract; else as `hooks_of` and `wrappers_of`.
    """
    hooks: tuple[Hook, ...] = ()
    if isinstance(item, type):
        check_contract(item)
        wrappers = (RegisteredWrapper(item, IN_PROCESS, ""),)
    else:
        hooks = hooks_of(item)
        wrappers = wrappers_of(hooks, IN_PROCESS, "")
    name: str = getattr(item, "__name__", repr(item))
    return PluginRecord(name, IN_PROCESS, "", name, "loaded", wrappers=wrappers, hooks=hooks)


def complaint_about(record: PluginRecord) -> str | None:
    """The warning about a plugin that was just loaded, if it failed or took long."""
    if record.status in ("failed", "incompatible"):
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
