"""The parts of JAX's traced functions that are used here, in one place.

Everything else in this package uses documented functions of JAX. Where versions differ:

* `counts_of_scan`: `num_consts` and `num_carry` of a scan until JAX 0.11, `ft_in` from 0.12 on.
* `opened`: the jaxprs inside of equations are closed, with constants, until JAX 0.11; from 0.12 on
  they are open, without constants.
* `manual_axes`: `manual_axes` of a `shard_map`, or `newly_manual_axes`.
* `name` of a `jit`: the `__name__` of the function, the same object from 0.8.1 to 0.12.
* `Jaxpr.replace`, `jax.core.eval_jaxpr`, `eqn.ctx.manager`, `eqn.source_info.name_stack`, and the
  names and parameters of primitives in `_rules.py` and `_calls.py` are the same from 0.8.1 to 0.12.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import jax
import jax.core
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Var
from jaxtyping import Array

from jno.lora.extending import equations_in, jaxprs_in

from .._views import Value
from ._marks import Mark, MarkedName

Traced: TypeAlias = Jaxpr | ClosedJaxpr


def out(eqn: JaxprEqn) -> jax.ShapeDtypeStruct:
    """The shape and dtype of the first result."""
    aval: Any = eqn.outvars[0].aval
    return jax.ShapeDtypeStruct(aval.shape, aval.dtype)


def mark_in(eqn: JaxprEqn) -> Mark | None:
    name = eqn.params.get("name")
    return name.mark if isinstance(name, MarkedName) else None


def is_changed(eqn: JaxprEqn, mark: Mark) -> bool:
    """Whether the read was differentiated, or mapped by `vmap`, inside of the traced function."""
    operands: list[Any] = [var.aval for var in eqn.invars]
    return len(eqn.outvars) != 1 or [aval.shape for aval in operands] != mark.shapes


def read(env: Mapping[Var, Value], var: Var | Literal) -> Value:
    """The value of a literal or a variable; `None` for a variable without a value."""
    return var.val if isinstance(var, Literal) else env.get(var)


def evaluate_plainly(
    jaxpr: Jaxpr, eqns: Sequence[JaxprEqn], env: Mapping[Var, Value]
) -> dict[Var, Array]:
    """The results of some equations of `jaxpr` on arrays, by variable, as JAX computes them."""
    results = [var for eqn in eqns for var in eqn.outvars]
    computed = set(results)
    operands = (var for eqn in eqns for var in eqn.invars if not isinstance(var, Literal))
    inputs = [var for var in dict.fromkeys(operands) if var not in computed]
    unnamed = jaxpr.debug_info._replace(arg_names=None, result_paths=None)
    subset = jaxpr.replace(
        constvars=[], invars=inputs, outvars=results, eqns=list(eqns), debug_info=unnamed
    )
    values = jax.core.eval_jaxpr(subset, (), *(env[var] for var in inputs))
    return dict(zip(results, values, strict=True))


@contextlib.contextmanager
def context_of(eqn: JaxprEqn) -> Iterator[None]:
    """The settings under which the equation was traced: scope of names, JAX's contexts."""
    scope = str(eqn.source_info.name_stack)
    named = jax.named_scope(scope) if scope else contextlib.nullcontext()
    with eqn.ctx.manager, named:
        yield


def opened(traced: Traced) -> tuple[Jaxpr, Sequence[Value]]:
    return (traced.jaxpr, traced.consts) if isinstance(traced, ClosedJaxpr) else (traced, ())


def counts_of_scan(eqn: JaxprEqn) -> tuple[int, int]:
    """The number of constants of a scan, and of the values that it carries."""
    if "ft_in" in eqn.params:
        consts, carry, _ = eqn.params["ft_in"].unpack()
        return len(consts), len(carry)
    return eqn.params["num_consts"], eqn.params["num_carry"]


def manual_axes(eqn: JaxprEqn) -> set[str]:
    name = "newly_manual_axes" if "newly_manual_axes" in eqn.params else "manual_axes"
    return set(eqn.params[name])


def marks_in(eqn: JaxprEqn) -> list[Mark]:
    """The reads of weights in an equation and in the functions that it calls."""
    eqns = [eqn, *(inner for jaxpr in jaxprs_in(eqn) for inner in equations_in(jaxpr))]
    return [mark for mark in map(mark_in, eqns) if mark is not None]
