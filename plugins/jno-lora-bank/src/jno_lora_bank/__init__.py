"""Many adapters of one model in one program: each example of a batch uses its own."""

from ._bank import AdapterBank
from ._slots import at_slot
from ._state import Snapshot

__all__ = ["AdapterBank", "Snapshot", "at_slot"]
