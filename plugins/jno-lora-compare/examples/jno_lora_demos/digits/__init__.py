"""A classifier of digits is adapted to another domain in eleven ways, compared in one table."""

from ._run import run_demo

__all__ = ["run_demo"]
