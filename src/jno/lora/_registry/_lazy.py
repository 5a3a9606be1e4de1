"""Adapter classes that are made when somebody uses them."""

from collections import UserDict
from collections.abc import Callable, Mapping
from typing import Any

from .._contract import LoRAWrapper


class LazyAdapter:
    """An adapter class that is made when somebody reads `cls`, with the facts that find it.

    For the plugins of this project. The classes of other plugins are made when they are loaded, so
    that a class that cannot be made hurts its own plugin alone.

    **Arguments:**

    - `make`: makes the class. Threads that read `cls` at the same time may call it twice, and get
        the class that came first.
    - `name`, `module`, `variant`, `auto`: the attributes of the class.
    """

    def __init__(
        self, make: Callable[[], Any], *, name: str, module: str, variant: str | None, auto: bool
    ):
        self.__name__, self.__module__, self.variant, self.auto = name, module, variant, auto
        self._make, self._made = make, list[type[LoRAWrapper]]()

    @property
    def made(self) -> type[LoRAWrapper] | None:
        """The class, if it is made."""
        return self._made[0] if self._made else None

    @property
    def cls(self) -> type[LoRAWrapper]:
        """The class: always the same one."""
        if not self._made:
            self._made.append(self._make())
        return self._made[0]


class ClassesByName(UserDict[str, Any]):
    """Adapter classes by name. A class is made when it is read; `data` has what makes it."""

    def __init__(self, data: Mapping[str, Any]):
        self.data = dict(data)

    def __getitem__(self, name: str) -> type[LoRAWrapper]:
        item = self.data[name]
        return item if isinstance(item, type) else item.cls
