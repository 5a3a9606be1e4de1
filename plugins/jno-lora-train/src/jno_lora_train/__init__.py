"""Training: loops, optimisers for adapters, replay and penalties.

`jno_lora_train.optim` has the optimisers, which need optax.
"""

from ._penalty import penalty
from ._retain import retain
from ._save_products import save_products
from ._scanned_layers import ScannedLayers
from ._trainer import Cost, Fit, Trainer
from ._training_run import TrainingRun

__all__ = [
    "Cost",
    "Fit",
    "ScannedLayers",
    "Trainer",
    "TrainingRun",
    "penalty",
    "retain",
    "save_products",
]
