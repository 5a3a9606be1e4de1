"""The steps of `save_peft`."""

from ._adapters import WrittenAdapters as WrittenAdapters
from ._trained_arrays import TrainedArrays as TrainedArrays
