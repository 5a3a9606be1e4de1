"""Pictures of results. Matplotlib is imported when the first picture is drawn."""

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ._figure import Picture


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
    from ._figure import Picture

    return Picture(width, height, path)
