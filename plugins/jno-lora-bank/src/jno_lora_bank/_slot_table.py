"""The names of the adapters in a bank, and their slots."""

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from jno.lora import SelectionError
from jno.lora.extending import nearest


class SlotTable(NamedTuple):
    """Which slot holds which adapter. Slot 0 is the base alone, and has no name.

    - `slots`: the slot of each adapter, by name.
    - `free`: the empty slots. The next adapter goes into the first.
    """

    slots: Mapping[str, int]
    free: tuple[int, ...]

    @classmethod
    def empty(cls, capacity: int) -> "SlotTable":
        """A table of `capacity` slots, with slot 0, and no adapter."""
        return cls(MappingProxyType({}), tuple(range(1, capacity)))

    @property
    def capacity(self) -> int:
        """The number of slots, with slot 0."""
        return 1 + len(self.slots) + len(self.free)

    def added(self, name: str) -> "SlotTable":
        """The table with `name` in the first empty slot."""
        slot, *free = self.free
        return SlotTable(MappingProxyType({**self.slots, name: slot}), tuple(free))

    def removed(self, name: str) -> "SlotTable":
        """The table without `name`, whose slot becomes the last empty slot."""
        slots = dict(self.slots)
        slot = slots.pop(name)
        return SlotTable(MappingProxyType(slots), (*self.free, slot))

    def doubled(self) -> "SlotTable":
        """The table with twice as many slots."""
        return self._replace(free=(*self.free, *range(self.capacity, 2 * self.capacity)))


class Snapshot(NamedTuple):
    """A bank at one moment. Later changes of the bank do not change it.

    - `model`: with all slots in its adapted layers, for `at_slot`.
    - `slots`: the slot of each adapter, by name.
    """

    model: Any
    slots: Mapping[str, int]

    def indices(self, names: Iterable[str | None]) -> Int[np.ndarray, " n"]:
        """The slots of these names. `None` is the base alone, slot 0.

        **Raises:** `SelectionError` for a name that the bank does not have.
        """
        return np.asarray([self.slot(name) for name in names], np.int32)

    def slot(self, name: str | None) -> int:
        """The slot of one name. **Raises:** as `indices`."""
        if name is None:
            return 0
        if name not in self.slots:
            near = ", ".join(map(repr, nearest(str(name), self.slots, n=3))) or "none"
            raise SelectionError(
                f"The bank has no adapter {name!r} (the nearest names: {near}). It was never added "
                "or was removed; None is the base alone."
            )
        return self.slots[name]
