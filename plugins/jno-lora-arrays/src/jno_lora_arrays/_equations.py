"""What is used of JAX's traced functions, in one place: their equations, and those inside of them.

`jax.core.eval_jaxpr`, `Jaxpr.replace` and the names and parameters of primitives are the same from
JAX 0.8.1 to 0.12. The tests of the rules fail if one of them changes.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import jax.core
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from ._marks import Mark, mark_called


def mark_in(eqn: Any) -> Mark | None:
    """The mark of this equation, if it reads a weight."""
    name = eqn.params.get("name") if eqn.primitive.name in ("jit", "pjit") else None
    return mark_called(name) if isinstance(name, str) else None


def is_changed(eqn: Any, mark: Mark) -> bool:
    """Whether the read was differentiated, or mapped by `vmap`, inside of the traced function."""
    shapes = [var.aval.shape for var in eqn.invars]
    return len(eqn.outvars) != 1 or shapes != mark.shapes


def evaluate_plainly(jaxpr: Any, eqn: Any, values: Sequence[Any]) -> Sequence[Any]:
    """The results of one equation of `jaxpr` on arrays, as JAX itself computes them."""
    given = {v: x for v, x in zip(eqn.invars, values, strict=True) if not isinstance(v, Literal)}
    unnamed = jaxpr.debug_info._replace(arg_names=None, result_paths=None)
    alone = jaxpr.replace(
        constvars=[], invars=list(given), outvars=eqn.outvars, eqns=[eqn], debug_info=unnamed
    )
    return jax.core.eval_jaxpr(alone, (), *given.values())


def marks_in(jaxpr: Any) -> Iterator[Mark]:
    """The reads of weights in a traced function, also in functions that it calls."""
    for eqn in jaxpr.eqns:
        mark = mark_in(eqn)
        if mark is not None:
            yield mark
        else:
            for inner in jaxprs_in(eqn):
                yield from marks_in(inner)


def opened(traced: Any) -> tuple[Any, Sequence[Any]]:
    """The jaxpr of a traced function, and its constants. From JAX 0.12 on, inner ones have none."""
    return (traced.jaxpr, traced.consts) if isinstance(traced, ClosedJaxpr) else (traced, ())


def counts_of_scan(eqn: Any) -> tuple[int, int]:
    """The number of constants of a scan, and of the values that it carries."""
    if "ft_in" in eqn.params:  # from JAX 0.12 on
        consts, carry, _ = eqn.params["ft_in"].unpack()
        return len(consts), len(carry)
    return eqn.params["num_consts"], eqn.params["num_carry"]


def jaxprs_in(eqn: Any) -> Iterator[Any]:
    """The traced functions that an equation calls."""
    for value in eqn.params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            if isinstance(item, ClosedJaxpr):
                yield item.jaxpr
            elif isinstance(item, Jaxpr):
                yield item
