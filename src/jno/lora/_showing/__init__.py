"""Tables, plots and progress bars.

Plots are in `_showing.plots`, which imports matplotlib, and so is imported where one is drawn.
"""

from ._progress import Bar, tracked
from ._tables import Printed, Table, table, table_by_path

__all__ = [
    "Bar",
    "Printed",
    "Table",
    "table",
    "table_by_path",
    "tracked",
]
