"""Adapters side by side: each trained on one model, from the same start, on the same batches.

`jno.lora.compare` is the function of this package, and `jno-lora compare` and `jno-lora demo` are
its commands.
"""

from ._compare import compare
from ._comparison import Comparison, ComparisonRow
from ._fitting import Trainer

__all__ = ["Comparison", "ComparisonRow", "Trainer", "compare"]
