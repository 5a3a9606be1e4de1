"""Adapters side by side: each trained on one model, from the same start, on the same batches.

`jno.lora.compare` does that, and `jno-lora compare` and `jno-lora demo` are its commands. The parts
serve a training loop of your own too: `Trainer`, `TrainingRun` and `ScannedLayers`.
"""

from ._compare import compare
from ._comparison import Comparison, ComparisonRow
from ._fitting import Trainer
from ._scanned_layers import ScannedLayers
from ._training_run import TrainingRun

__all__ = ["Comparison", "ComparisonRow", "ScannedLayers", "Trainer", "TrainingRun", "compare"]
