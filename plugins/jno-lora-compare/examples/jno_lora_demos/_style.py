"""Make pictures readable on white and on black pages."""

from typing import Any

GREY = "#7f8790"
# For `matplotlib.rc_context`.
STYLE: Any = {
    **dict.fromkeys(("axes.edgecolor", "axes.labelcolor", "axes.titlecolor"), GREY),
    **dict.fromkeys(("xtick.color", "ytick.color", "legend.labelcolor"), GREY),
    **dict.fromkeys(("axes.spines.top", "axes.spines.right", "legend.frameon"), False),
    "axes.titlesize": "medium",
    "legend.fontsize": "x-small",
    "svg.hashsalt": "burgers",  # so that the same numbers give the same file
}


def save(figure: Any, path: Any) -> None:
    """Write a figure without a background, in the format of the path's ending."""
    metadata = {"Date": None} if str(path).endswith(".svg") else None
    figure.savefig(path, transparent=True, metadata=metadata)
