"""Walks over traced functions."""

from collections.abc import Iterator
from typing import Any

from jax.extend.core import ClosedJaxpr, Jaxpr


def equations_in(jaxpr: Any) -> Iterator[Any]:
    """The equations of a traced function, and of the functions that it calls."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jaxprs_in(equation):
            yield from equations_in(inner)


def jaxprs_in(equation: Any) -> Iterator[Any]:
    """The traced functions that an equation calls, without their constants."""
    for value in equation.params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            if isinstance(item, ClosedJaxpr):
                yield item.jaxpr
            elif isinstance(item, Jaxpr):
                yield item
