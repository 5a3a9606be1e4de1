"""The numbers of the demo."""

from pathlib import Path
from typing import NamedTuple

import numpy as np


class Row(NamedTuple):
    """A candidate: its errors at the tested viscosities, and what it changed."""

    name: str
    trained: int
    errors: tuple[float, ...]
    rate: float | None
    change: float  # the largest change of a weight at the pretrained viscosity


class Demo(NamedTuple):
    rows: tuple[Row, ...]
    recovered: np.ndarray  # viscosities, (tested, queries): one from each simulation
    plot: Path
