"""The steps of `load_peft`."""

from ._adapters import adapters_of as adapters_of
from ._placement import Placement as Placement
