"""Tables and progress bars."""

from ._grouping import grouped
from ._progress import Bar, tracked
from ._tables import Printed, Table, print_table, table
