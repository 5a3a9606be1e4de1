"""Many adapters of one model in one program: each example of a batch uses its own."""

from ._bank import AdapterBank, Snapshot
from ._slots import at_slot

__all__ = ["AdapterBank", "Snapshot", "at_slot"]
