"""The demo: one classifier, one shift of domain, and every way of adapting to it in one table.

It needs the libraries of the extra `demo`, so nothing imports it before it is asked for.
"""

from ._run import Demo, run_demo

__all__ = ["Demo", "run_demo"]
