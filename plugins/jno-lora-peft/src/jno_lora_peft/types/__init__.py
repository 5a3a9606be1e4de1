"""PEFT's types that are held here, one file each.

`python -m peft_cases.listing --write`, in the folder of the tests, adds a new one to docs/peft.md.
"""

import importlib
import pkgutil

from ._methods import (
    METHODS as METHODS,
    ROUTED as ROUTED,
    alpha_for as alpha_for,
    check_layer as check_layer,
)
from ._starts import refused_start as refused_start
from ._type import (
    Adapter as Adapter,
    Converted as Converted,
    Module as Module,
    Modules as Modules,
    Setting as Setting,
    Tensors as Tensors,
    Type as Type,
    Written as Written,
    floating as floating,
    widened as widened,
)

_FILES = [file.name for file in pkgutil.iter_modules(__path__) if not file.name.startswith("_")]
for _name in _FILES:
    importlib.import_module(f".{_name}", __name__)

# By `peft_type`.
TYPES = {cls.__name__: cls() for cls in sorted(Type.__subclasses__(), key=lambda c: c.__name__)}

# By the variants of the methods that are written as the type.
TYPE_OF = {variant: type_ for type_ in TYPES.values() for variant in type_.variants}
