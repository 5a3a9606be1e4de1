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

    **Arguments:** `path`: where it is to be saved. Its ending is checked now, before long work.

    **Raises:** `MissingLibraryError` without matplotlib (the extra `plot`); `SelectionError` for an
    ending that matplotlib does not know.
    """
    from .plots import Picture

    return Picture(width, height, path)
