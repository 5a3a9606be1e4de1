"""Statistics of a layer's data, from which adapters such as EVA and CorDA start."""

from ._collecting import (
    check_statistics_from as check_statistics_from,
    collect_statistics as collect_statistics,
)
from ._statistics import Statistics as Statistics
