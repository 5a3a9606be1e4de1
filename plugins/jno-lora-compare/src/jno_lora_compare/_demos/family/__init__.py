"""One adapter for a family of viscosities, beside four other ways to adapt an operator."""

from ._run import draw, run_family

__all__ = ["draw", "run_family"]
