"""A classifier of digits: one shift of domain, and eleven ways of adapting to it in one table."""

from ._run import run_demo

__all__ = ["run_demo"]
