"""Training: loops, optimisers for adapters, calibration on data, and reallocation of ranks.

`jno_lora_train.optim` has the optimisers, which need optax.
"""

from ._adalora import AdaLoRAController, AdaLoRAState
from ._allocate import Allocation, AllocationRow, allocate
from ._calibrate import calibrate, check_calibrate
from ._penalty import penalty
from ._retain import retain
from ._save_products import save_products
from ._scanned_layers import ScannedLayers
from ._statistics import Statistics
from ._trainer import Cost, Fit, Trainer
from ._training_run import TrainingRun

__all__ = [
    "AdaLoRAController",
    "AdaLoRAState",
    "Allocation",
    "AllocationRow",
    "Cost",
    "Fit",
    "ScannedLayers",
    "Statistics",
    "Trainer",
    "TrainingRun",
    "allocate",
    "calibrate",
    "check_calibrate",
    "penalty",
    "retain",
    "save_products",
]
