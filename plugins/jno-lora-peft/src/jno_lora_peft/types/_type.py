"""The description of one of PEFT's types of adapter, and the names that each type needs."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from .._errors import MisfitError as MisfitError
from ._conversion import (
    Adapter as Adapter,
    Converted as Converted,
    Module as Module,
    Tensors as Tensors,
    Written as Written,
    check_layer,
)


class Setting(NamedTuple):
    """A setting with a number: its name, its default, and the table for single modules.

    - `by_name`: whether PEFT looks for whole names in the table, or else for the end of a name.
    """

    name: str
    default: float
    pattern: str = ""
    by_name: bool = False


R = Setting("r", 8)
R_PATTERN = Setting("r", 8, "rank_pattern")
ALPHA_PATTERN = Setting("alpha", 8, "alpha_pattern")

Modules = Mapping[str, Written]


@dataclasses.dataclass(frozen=True)
class Type:
    """One type of adapter.

    - `name`: the `peft_type`; `held`: how it is held, for the documentation; else as its method.
    - `tensors`, `shared`: regular expressions for tensors of one module, and for tensors of all.
    - `reader`, `writer`: of one adapter; they raise `MisfitError`.
    - `methods`: the variants that are written as this type, if not the one of the same name.
    - `layers`: the kinds that PEFT has the type for; if `None`, `reader` and `writer` check.
    - `settings`: names of further settings that are read or do not change outputs, with spaces.
    - `only`: settings that may have one value only, and why.
    - `common`, `shares`: settings, and tensors by whole names, that depend on all modules.
    - `bias`: the value of its setting `bias` with which the adapted layers' biases train.
    """

    name: str
    held: str = ""
    tensors: str = "(?!)"
    reader: Callable[[Module], Converted] | None = None
    writer: Callable[[Adapter], Written] | None = None
    methods: tuple[str, ...] = ()
    layers: tuple[str, ...] | None = ("linear",)
    rank: Setting | None = None
    alpha: Setting | None = None
    shared: str = "(?!)"
    settings: str = ""
    only: Mapping[str, tuple[Any, str]] = dataclasses.field(default_factory=dict)
    common: Callable[[Modules], dict[str, Any]] = lambda modules: {}
    shares: Callable[[Modules], Tensors] = lambda modules: {}
    bias: str = ""

    @property
    def known_settings(self) -> set[str]:
        numbers = [setting for setting in (self.rank, self.alpha) if setting is not None]
        names = {name for setting in numbers for name in (setting.name, setting.pattern) if name}
        return {*self.settings.split(), *self.only, *names}

    @property
    def variants(self) -> tuple[str, ...]:
        return self.methods or ((self.name.lower(),) if self.writer else ())

    def read(self, m: Module) -> Converted:
        assert self.reader is not None, f"{self.name} has no adapters"
        if self.layers is not None:
            check_layer(m.layout, self.layers)
        return self.reader(m)

    def write(self, adapter: Adapter) -> Written:
        assert self.writer is not None, f"{self.name} is not written"
        if self.layers is not None:
            check_layer(adapter.layout, self.layers)
        return self.writer(adapter)
