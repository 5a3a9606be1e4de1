"""Traced functions: marks where they read weights, and their evaluation with virtual weights."""

# ruff: noqa: F401
from ._evaluate import Evaluation
from ._marks import read_marked
from ._report import Use, UseReport
