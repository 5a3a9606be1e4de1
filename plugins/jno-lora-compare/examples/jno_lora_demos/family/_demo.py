"""The numbers of the demo."""

from pathlib import Path
from typing import NamedTuple

import numpy as np


class Row(NamedTuple):
    """A candidate: its errors at the tested viscosities, and its change of the weights."""

    name: str
    trained: int
    errors: tuple[float, ...]
    band: np.ndarray  # the 10 % and 90 % quantiles of the simulations' errors, (2, tested)
    rate: float | None
    change: float  # the largest change of a weight at the pretrained viscosity


class Example(NamedTuple):
    """One simulation at a viscosity that no candidate was trained at."""

    viscosity: float
    start: np.ndarray
    solution: np.ndarray
    predicted: dict[str, np.ndarray]  # by candidate


class Demo(NamedTuple):
    rows: tuple[Row, ...]
    recovered: np.ndarray  # viscosities, (tested, queries): one from each simulation
    example: Example
    plots: tuple[Path, Path]
