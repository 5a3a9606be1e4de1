"""`Composite`: an adapter class that is made of other adapter classes."""

import abc
from typing import ClassVar, NamedTuple

from ._matrix_adapter import MatrixAdapter
from ._wrapper import LoRAWrapper


class Member(NamedTuple):
    """One adapter of a composite: its name, class, rank and alpha, and whether it trains."""

    name: str
    wrapper: type[LoRAWrapper]
    rank: int | None
    alpha: float | None
    trains: bool = False


class Composite(MatrixAdapter):
    """The base class of adapters that are made of other adapters, such as sums.

    A plugin registers a subclass without `members`, which applies to no layer, so that files can
    name it. Its `of_members` gives a direct subclass for each choice of members, whose adapters
    `from_state` and the plugin's own functions make: `lora` never calls the constructor.
    """

    members: ClassVar[tuple[Member, ...]] = ()

    @classmethod
    @abc.abstractmethod
    def of_members(cls, members: tuple[Member, ...], trains_weights: bool) -> type["Composite"]:
        """The class for these members. The same arguments always give the same class.

        - `trains_weights`: whether `adapter_fields` of the class names `weights`.
        """


def registered_class(cls: type[LoRAWrapper]) -> type[LoRAWrapper]:
    """The class that a plugin registers: of a composite with members, the class without."""
    return cls.__mro__[1] if issubclass(cls, Composite) and cls.members else cls
