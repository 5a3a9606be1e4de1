"""Traced functions: marks where they read weights, and their evaluation with virtual weights."""

from ._evaluate import Evaluation as Evaluation, Use as Use, UseReport as UseReport
from ._marks import read_marked as read_marked
