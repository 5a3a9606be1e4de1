"""One adapter for a family of viscosities, compared with four other ways to adapt an operator."""

from ._picture import draw, draw_example
from ._run import run_family

__all__ = ["draw", "draw_example", "run_family"]
