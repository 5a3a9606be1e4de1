"""Many adapters of one model in one program, where each example of a batch has its own adapter."""

from ._bank import AdapterBank
from ._running import at_slot
from ._state import Snapshot

__all__ = ["AdapterBank", "Snapshot", "at_slot"]
