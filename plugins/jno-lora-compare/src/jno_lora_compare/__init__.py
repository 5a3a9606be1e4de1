"""Train adapters side by side on one model, from the same start and on the same batches."""

from typing import Any

import jno_lora_train
from jno.lora.extending import warn

from ._compare import compare
from ._comparison import Comparison
from ._row import ComparisonRow

__all__ = ["Comparison", "ComparisonRow", "compare"]


def __getattr__(name: str) -> Any:
    if name not in ("ScannedLayers", "Trainer", "TrainingRun"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    warn(
        f"{name} has moved to jno-lora-train: write `from jno_lora_train import {name}`. The next "
        f"release drops `jno_lora_compare.{name}`."
    )
    return getattr(jno_lora_train, name)
