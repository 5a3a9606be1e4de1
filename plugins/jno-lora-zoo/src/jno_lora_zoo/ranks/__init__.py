"""Ranks that differ from layer to layer: allocated before training, or by AdaLoRA during it."""

from ._adalora import AdaLoRAController as AdaLoRAController, AdaLoRAState as AdaLoRAState
from ._allocate import (
    Allocation as Allocation,
    AllocationRow as AllocationRow,
    allocate as allocate,
)
