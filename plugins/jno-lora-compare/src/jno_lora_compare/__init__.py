"""Train adapters side by side on one model, from the same start and on the same batches."""

from ._compare import compare
from ._comparison import Comparison
from ._row import ComparisonRow

__all__ = ["Comparison", "ComparisonRow", "compare"]
