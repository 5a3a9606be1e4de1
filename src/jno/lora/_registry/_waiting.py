"""A plugin that takes long to load is named: in the log while it does, as a warning afterwards.

The log also names a plugin that never ends, of which there is no afterwards.
"""

import contextlib
import logging
import threading
from collections.abc import Iterator

from ._discovery import Found
from ._records import PluginRecord
from ._zoo_names import FIRST_PARTY

_LOG = logging.getLogger("jno.lora.plugins")

# What takes longer than this is worth a word.
PATIENCE = 5.0  # seconds


@contextlib.contextmanager
def named_while_slow(found: Found) -> Iterator[None]:
    """Around loading a plugin: says so in the log, once it takes longer than `PATIENCE`."""
    timer = threading.Timer(PATIENCE, _say, (found,))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def slow_plugin(record: PluginRecord) -> str | None:
    """What to warn of once a plugin is loaded, if it took long and is not one of our own."""
    if record.status == "blocked" or record.seconds <= PATIENCE:
        return None
    # What ours take is up to the machine, and nobody would block them.
    if record.distribution in FIRST_PARTY:
        return None
    return (
        f"The plugin {record.describe()} took {record.seconds:.1f} s to load."
        f"{_advice(record.distribution)}"
    )


def _say(found: Found) -> None:
    # A warning of the log, not of `warnings`: those are lost in a thread, or raised in it.
    _LOG.warning(
        "Still loading the plugin %s %s (entry point %r = %r), for more than %g s.%s",
        found.distribution,
        found.version,
        found.name,
        found.entry_point.value,
        PATIENCE,
        _advice(found.distribution),
    )


def _advice(distribution: str) -> str:
    if distribution in FIRST_PARTY:
        return ""  # without the zoo there are no adapters by default
    return f" To do without it, set the environment variable JNO_LORA_BLOCK={distribution}."
