"""The parts of JAX's traced functions that are used here, in one place.

Everything else in this package uses documented functions of JAX. Where versions differ:

* `counts_of_scan`: `num_consts` and `num_carry` of a scan until JAX 0.11, `ft_in` from 0.12 on.
* `opened`: the jaxprs inside of equations are closed, with constants, until JAX 0.11; from 0.12 on
  they are open, without constants.
* `manual_axes`: `manual_axes` of a `shard_map`, or `newly_manual_axes`.
* `custom_function`: `call_jaxpr` of `custom_jvp_call` and `custom_vjp_call` from 0.8.1 to 0.12.
* `name` of a `jit`: the `__name__` of the function, the same object from 0.8.1 to 0.12.
* `Jaxpr.replace`, `jax.core.eval_jaxpr`, `eqn.ctx.manager`, `eqn.source_info.name_stack`, and the
  names and parameters of primitives in `_rules.py` and `_calls.py` are the same from 0.8.1 to 0.12.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.core
from jax.extend.core import ClosedJaxpr, Literal

from jno.lora.extending import equations_in, jaxprs_in

from ._marks import Mark, MarkedName


def mark_in(eqn: Any) -> Mark | None:
    name = eqn.params.get("name")
    return name.mark if isinstance(name, MarkedName) else None


def is_changed(eqn: Any, mark: Mark) -> bool:
    """Whether the read was differentiated, or mapped by `vmap`, inside of the traced function."""
    return len(eqn.outvars) != 1 or [var.aval.shape for var in eqn.invars] != mark.shapes


def read(env: Mapping[Any, Any], var: Any) -> Any:
    """The value of a literal or a variable; `None` for a variable without a value."""
    return var.val if isinstance(var, Literal) else env.get(var)


def evaluate_plainly(jaxpr: Any, eqns: Sequence[Any], env: Mapping[Any, Any]) -> dict[Any, Any]:
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
def context_of(eqn: Any) -> Iterator[None]:
    """The settings under which the equation was traced: scope of names, JAX's contexts."""
    scope = str(eqn.source_info.name_stack)
    named = jax.named_scope(scope) if scope else contextlib.nullcontext()
    with eqn.ctx.manager, named:
        yield


def opened(traced: Any) -> tuple[Any, Sequence[Any]]:
    return (traced.jaxpr, traced.consts) if isinstance(traced, ClosedJaxpr) else (traced, ())


def counts_of_scan(eqn: Any) -> tuple[int, int]:
    """The number of constants of a scan, and of the values that it carries."""
    if "ft_in" in eqn.params:
        consts, carry, _ = eqn.params["ft_in"].unpack()
        return len(consts), len(carry)
    return eqn.params["num_consts"], eqn.params["num_carry"]


def manual_axes(eqn: Any) -> set[str]:
    name = "newly_manual_axes" if "newly_manual_axes" in eqn.params else "manual_axes"
    return set(eqn.params[name])


def custom_function(eqn: Any) -> Any:
    """The function of a `custom_jvp` or `custom_vjp`, without its rule."""
    return eqn.params["call_jaxpr"]


def marks_in(eqn: Any) -> list[Mark]:
    """The reads of weights in an equation and in the functions that it calls."""
    eqns = [eqn, *(inner for jaxpr in jaxprs_in(eqn) for inner in equations_in(jaxpr))]
    return [mark for mark in map(mark_in, eqns) if mark is not None]
