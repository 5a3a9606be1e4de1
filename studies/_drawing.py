"""Figures as SVG without a background, for light and dark pages."""

import pathlib
from typing import Any

GREY = "#808080"  # readable on white and on black
# Okabe and Ito's colours, which colour-blind readers can tell apart; each with a marker.
STYLES = (("#009E73", "o"), ("#56B4E9", "s"), ("#E69F00", "^"))


def pyplot() -> Any:
    """Matplotlib's `pyplot`, with the colours of the pages."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = ("text.color", "axes.labelcolor", "axes.edgecolor", "axes.titlecolor")
    plt.rcParams.update(dict.fromkeys((*names, "xtick.color", "ytick.color"), GREY))
    plt.rcParams.update({"legend.frameon": False, "figure.constrained_layout.use": True})
    plt.rcParams["svg.hashsalt"] = "jno-lora"  # the same data should give the same file
    return plt


def save(plt: Any, figure: Any, path: pathlib.Path) -> None:
    """Write the figure and close it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, transparent=True, metadata={"Date": None})
    plt.close(figure)
