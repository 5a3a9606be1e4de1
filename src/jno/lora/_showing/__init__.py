"""Tables, plots and progress bars.

`_showing.plots` imports matplotlib, so it is imported only where a plot is drawn.
"""

from ._grouping import grouped
from ._progress import Bar, tracked
from ._tables import Printed, Table, table
