"""Statistics of data: collected by one pass over some batches, kept, and turned into ranks."""

from ._allocate import Allocation, AllocationRow, allocate
from ._calibrate import calibrate, check_calibrate
from ._statistics import Statistics
