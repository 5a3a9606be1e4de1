"""Walks over traced functions."""

from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
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


def is_random_start(jaxpr: Any) -> bool:
    """Whether the results are random, and depend on no floating input or constant."""
    if not any(equation.primitive.name == "random_bits" for equation in equations_in(jaxpr)):
        return False
    needed = {id(var) for var in jaxpr.outvars}
    for equation in reversed(jaxpr.eqns):
        if any(id(var) in needed for var in equation.outvars):
            needed.update(map(id, equation.invars))
    inputs = (var for var in (*jaxpr.invars, *jaxpr.constvars) if id(var) in needed)
    return not any(jnp.issubdtype(var.aval.dtype, jnp.inexact) for var in inputs)
