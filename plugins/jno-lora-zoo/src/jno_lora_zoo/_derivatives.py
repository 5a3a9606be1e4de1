"""Functions with custom derivatives that Taylor mode (`jax.experimental.jet`) supports.

JAX's `jet` ignores rules of `jax.custom_jvp` and fails at the first operation inside such a
function. The two functions below therefore contain no operations, but return an argument.
"""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import equinox as eqx
import jax
from jaxtyping import Array

_Function = TypeVar("_Function", bound=Callable[..., Any])
# Maps the value, the arguments and their tangents (`None` for constant arguments) to the value and
# its tangent.
Rule = Callable[..., tuple[Array, Array | None]]


def differentiated_by(rule: Rule) -> Callable[[_Function], _Function]:
    """Give `function(*arrays, **static)` a rule: `rule(value, arrays, tangents, **static)`.

    The function computes its value outside the rule, from arguments that are constants for
    differentiation, so that nothing is differentiated twice and `jet` gets the plain operations. If
    a rule computes the value anyway, it returns this value, and the compiler removes the first
    computation.
    """

    def decorate(function: _Function) -> _Function:
        @functools.wraps(function)
        def differentiated(*args: Any, **static: Any) -> Any:
            value = function(*_detached(args), **static)
            return _ruled(value, *args, rule=functools.partial(rule, **static))

        return differentiated  # pyright: ignore[reportReturnType]

    return decorate


def recomputed(function: _Function) -> _Function:
    """`function(*arguments)`, with a backward pass that stores only the arguments.

    Everything to differentiate must be an argument: an array, or a tree of arrays such as a module.
    `jax.checkpoint` alone would stop Taylor mode. Outside of loops, XLA for CPUs (of JAX 0.10)
    merges the two computations and stores the values anyway.
    """
    checkpointed = eqx.filter_checkpoint(function)

    def rule(value: Array, primals: Any, tangents: Any) -> tuple[Array, Array | None]:
        return value, eqx.filter_jvp(checkpointed, primals, tangents)[1]

    return differentiated_by(rule)(function)


@eqx.filter_custom_jvp
def _detached(args: Any) -> Any:
    """`args` as constants for differentiation, but (unlike with `stop_gradient`) not for `jet`."""
    return args


@_detached.def_jvp
def _detached_jvp(primals: Any, tangents: Any) -> tuple[Any, Any]:
    (args,) = primals
    # Called again so that the arguments are constants for an outer derivative, too.
    return _detached(args), jax.tree.map(lambda _: None, args)


@eqx.filter_custom_jvp
def _ruled(value: Array, *args: Any, rule: Rule) -> Array:
    """`value`, whose derivative with respect to `args` is given by `rule`."""
    return value


@_ruled.def_jvp
def _ruled_jvp(primals: Any, tangents: Any, *, rule: Rule) -> tuple[Array, Array | None]:
    return rule(_ruled(*primals, rule=rule), primals[1:], tangents[1:])
