"""Tables, plots and progress bars."""

import os
from typing import TYPE_CHECKING

from ._grouping import grouped
from ._progress import Bar, tracked
from ._tables import Printed, Table, table

if TYPE_CHECKING:
    from .plots import Picture


def new_picture(
    width: float, height: float, path: str | os.PathLike[str] | None = None
) -> "Picture":
    """An empty `matplotlib.figure.Figure`, sizes in inches, which shows itself in a notebook.

    It needs no screen; `saved(path)` writes it to a file.

    **Arguments:** `path`: where it will be saved. The file extension is checked now, before long
    work.

    **Raises:** `MissingLibraryError` without matplotlib (the extra `plot`); `SelectionError` for a
    file extension that matplotlib does not support.
    """
    from .plots import Picture

    return Picture(width, height, path)
