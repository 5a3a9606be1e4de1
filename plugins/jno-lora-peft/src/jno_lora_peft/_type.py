"""The description of one of PEFT's types of adapter."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from ._module import Converted, Module
from ._same import Adapter, File


class Setting(NamedTuple):
    """A setting with a number: its name, its default, and the table for single modules.

    - `by_name`: whether PEFT looks for whole names in the table, or else for the end of a name.
    """

    name: str
    default: float
    pattern: str = ""
    by_name: bool = False


@dataclasses.dataclass(frozen=True)
class Type:
    """One type of adapter.

    - `held`: how it is held here, for the documentation.
    - `parts`, `shared`: regular expressions for the tensors of a module, and of none alone.
    - `read`: the adapter here of one module. **Raises:** `MisfitError`.
    - `rank`, `alpha`: the settings for them, if it has them.
    - `writes`: by variant of the methods that are written as this type.
    - `only`: settings that may have one value only, and why.
    - `common`: settings that depend on all modules, from what is written of each, by name.
    - `shares`: tensors of all modules together, by their whole names, as `common` is given them.
    - `bias`: the value of its setting `bias` with which the adapted layers' own biases train.
    """

    held: str
    parts: str
    read: Callable[[Module], Converted]
    rank: Setting | None = None
    alpha: Setting | None = None
    shared: str = "(?!)"
    writes: Mapping[str, Callable[[Adapter], File]] = dataclasses.field(default_factory=dict)
    only: Mapping[str, tuple[Any, str]] = dataclasses.field(default_factory=dict)
    common: Callable[[Mapping[str, Any]], dict[str, Any]] = lambda modules: {}
    shares: Callable[[Mapping[str, Any]], Mapping[str, Any]] = lambda modules: {}
    bias: str = ""
