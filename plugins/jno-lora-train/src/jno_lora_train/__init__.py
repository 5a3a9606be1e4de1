"""Parts of a training loop: compiled steps, runs that a file holds whole, scanned layers."""

from ._save_products import save_products
from ._scanned_layers import ScannedLayers
from ._trainer import Cost, Fit, Trainer
from ._training_run import TrainingRun

__all__ = ["Cost", "Fit", "ScannedLayers", "Trainer", "TrainingRun", "save_products"]
