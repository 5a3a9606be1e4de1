"""The supported types of PEFT, by family.

`python -m docs.update` adds a new type to docs/peft-types.md.
"""

from . import lora, positions, products, rotations, routed, shared, vectors  # noqa: F401
from .type import Type

# By `peft_type`.
TYPES = {cls.__name__: cls() for cls in sorted(Type.__subclasses__(), key=lambda c: c.__name__)}

# By the variants of the methods that are written as these types.
TYPE_OF = {variant: type_ for type_ in TYPES.values() for variant in type_.variants}
