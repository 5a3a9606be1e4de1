"""Tables, plots and progress bars."""

from ._plots import Picture, draw_comparison, draw_effects
from ._progress import Bar, tracked
from ._tables import Printed, Table, table, table_by_path

__all__ = [
    "Bar",
    "Picture",
    "Printed",
    "Table",
    "draw_comparison",
    "draw_effects",
    "table",
    "table_by_path",
    "tracked",
]
