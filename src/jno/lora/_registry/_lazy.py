"""Adapter classes that are created on first use."""

from collections import UserDict
from collections.abc import Callable, Mapping
from typing import Any

from .._contract import LoRAWrapper


class LazyAdapter:
    """An adapter class that is created when `cls` is read, with the facts for looking it up.

    For the plugins of this project. Other plugins create their classes when they are loaded, so
    that a class that cannot be created only breaks its own plugin.

    **Arguments:**

    - `make`: creates the class. Threads that read `cls` at the same time may call `make` twice, and
        all get the first class.
    - `name`, `module`, `variant`, `auto`: the attributes of the class.
    """

    def __init__(
        self, make: Callable[[], Any], *, name: str, module: str, variant: str | None, auto: bool
    ):
        self.__name__, self.__module__, self.variant, self.auto = name, module, variant, auto
        self._make, self._made = make, list[type[LoRAWrapper]]()

    @property
    def made(self) -> type[LoRAWrapper] | None:
        """The class, or `None` if it was not created yet."""
        return self._made[0] if self._made else None

    @property
    def cls(self) -> type[LoRAWrapper]:
        """The class, always the same object."""
        if not self._made:
            self._made.append(self._make())
        return self._made[0]


class ClassesByName(UserDict[str, Any]):
    """Adapter classes by name. A class is created when it is read, from the item in `data`."""

    def __init__(self, data: Mapping[str, Any]):
        self.data = dict(data)

    def __getitem__(self, name: str) -> type[LoRAWrapper]:
        item = self.data[name]
        return item if isinstance(item, type) else item.cls
