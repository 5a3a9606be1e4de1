"""Candidates trained side by side on one model."""

from ._compare import compare
from ._comparison import Comparison, ComparisonRow
from ._fitting import Trainer

__all__ = [
    "Comparison",
    "ComparisonRow",
    "Trainer",
    "compare",
]
