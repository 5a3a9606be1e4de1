"""A figure of matplotlib. This module is imported when the first picture is drawn."""

import io
import os
from os import PathLike
from pathlib import Path

from jno.lora import SelectionError
from jno.lora.extending import imported_for

with imported_for("A picture", "plot", "matplotlib"):
    from matplotlib.figure import Figure


class Picture(Figure):
    """A figure that shows itself in a notebook and needs no screen.

    It does not use pyplot, which would choose a backend for the process, and keep the figure.
    """

    def __init__(self, width: float, height: float, path: str | PathLike[str] | None = None):
        super().__init__(figsize=(width, height), dpi=150, layout="constrained")
        endings = [f".{name}" for name in sorted(self.canvas.get_supported_filetypes())]
        if path is not None and Path(path).suffix.lower() not in endings:
            raise SelectionError(
                f"No picture can be saved as {os.fspath(path)!r}. Let it end in one of "
                f"{', '.join(endings)}."
            )

    def _repr_png_(self) -> bytes:
        out = io.BytesIO()
        self.savefig(out, format="png")
        return out.getvalue()

    def saved(self, path: str | PathLike[str] | None) -> "Picture":
        """This figure, written to `path` if there is one."""
        if path is not None:
            self.savefig(path)
        return self
