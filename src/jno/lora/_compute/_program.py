"""Call a function on many similar layers by one compiled program.

Without programs, a large model is adapted by thousands of small operations, which is slow. A
program also saves the memory of intermediate results, such as a float32 copy of a weight.
"""

import functools
import inspect
import logging
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jax.core import Tracer
from jaxtyping import Array

from .._caches import remembered
from ._jaxprs import is_random_start
from ._lapack import decomposes, one_blas_thread
from ._signature import Signature, SignedTree, TracedError, signature_of

_log = logging.getLogger("jno.lora")


def call_compiled(
    function: Callable[..., Any], *args: Any, signed: SignedTree | None = None
) -> Any:
    """`function(*args)`, by a program that is cached for arguments of the same signature.

    An argument or an array that the function returns unchanged (the base of an adapter) stays the
    same object. The function is called without a program if arguments are traced, if their static
    fields cannot be hashed, or if it needs the values of arrays and so cannot be compiled.

    **Arguments:**

    - `function`: hashable, and pure.
    - `args`: pytrees of arrays and of hashable values.
    - `signed`: `signature_of(args)`, if the caller has it.

    **Raises:** `FloatingPointError` if the function decomposes a matrix on a CPU, and an array of
    `args` contains infinity, for which LAPACK may never return.
    """
    try:
        signature, arrays = signed or signature_of(args)
        program = _program(function, signature)
        return program.result(args, arrays, program.start(arrays))
    except Exception as err:
        # Without a program, LAPACK would get infinity, or even more memory would be needed.
        if isinstance(err, FloatingPointError) or "RESOURCE_EXHAUSTED" in str(err):
            raise
        _log.debug("%s, so a layer is not computed by a program: %s", type(err).__name__, err)
    # A function that fails without a program, too, fails again here with its traceback.
    return function(*args)


# A call whose program is running: a function that returns the result.
Started = Callable[[], Any]


def start_compiled(
    function: Callable[..., Any], args: tuple[Any, ...], signed: SignedTree
) -> Started | None:
    """Start `call_compiled`. `None` if the call must run alone: it fails or calls LAPACK."""
    try:
        program = _program(function, signed.signature)
        if not program.decomposes:
            computed = program.start(signed.arrays)
            return functools.partial(program.result, args, signed.arrays, computed)
    except Exception as err:
        _log.debug("%s, so a program is not started early: %s", type(err).__name__, err)
    return None


class _Given(NamedTuple):
    """A placeholder in a result for an argument, or for an array in an argument."""

    place: int


# A placeholder in a result for the next computed array.
_COMPUTED = object()


class Program:
    """A function, compiled for arguments of one signature.

    The program computes only the arrays that the function makes. Python puts arguments, their
    arrays, and constants into the result.
    """

    def __init__(self, function: Callable[..., Any], signature: Signature):
        self._function, self._signature = function, signature
        # The result: its structure, and for each leaf `_Given`, `_COMPUTED` or a constant.
        self._treedef: Any = None
        self._leaves: tuple[Any, ...] = ()
        self._jitted = jax.jit(self._compute)
        traced = self._jitted.trace(signature.abstract())
        self._quick: Any = None
        if is_random_start(traced.jaxpr.jaxpr) and (options := _quick_to_compile()):
            self._quick = jax.jit(self._compute, compiler_options=options)
        self._computes = bool(traced.jaxpr.out_avals)
        self.decomposes = decomposes(traced.jaxpr.jaxpr)

    def start(self, arrays: list[Any]) -> list[Array]:
        """The arrays that the function makes, which a CPU may still be computing."""
        if not self._computes:
            return []
        if not (self.decomposes and _lie_on_a_cpu(arrays)):
            return self._run(arrays)
        if any(map(_holds_infinity, arrays)):
            raise FloatingPointError(
                "an array holds NaN or infinity, and a decomposition may never return"
            )
        with one_blas_thread():
            return jax.block_until_ready(self._run(arrays))

    def _run(self, arrays: list[Any]) -> list[Array]:
        if self._quick is not None:
            try:
                return self._quick(arrays)
            # JAX refuses options inside of another traced function, and XLA unknown options.
            except (ValueError, jax.errors.JaxRuntimeError) as err:
                _log.debug("%s, so XLA's usual options are taken", err)
        return self._jitted(arrays)

    def result(self, args: tuple[Any, ...], arrays: list[Any], computed: list[Array]) -> Any:
        """The function's result for `args`, which contain `arrays`, from the result of `start`."""
        remaining, given = iter(computed), (*args, *arrays)
        leaves = [
            given[x.place] if type(x) is _Given else next(remaining) if x is _COMPUTED else x
            for x in self._leaves
        ]
        return jtu.tree_unflatten(self._treedef, leaves)

    def _compute(self, arrays: list[Array]) -> list[Array]:
        """The arrays of the result that are not arguments."""
        args = self._signature.tree_of(arrays)
        places = {id(x): place for place, x in enumerate((*args, *arrays))}
        leaves, self._treedef = jtu.tree_flatten(
            self._function(*args), is_leaf=lambda x: id(x) in places
        )
        new = [x for x in leaves if id(x) not in places]
        constants = (x for x in new if not eqx.is_array(x))
        if _static_fields_keep_tracer(self._treedef) or any(map(_keeps_tracer, constants)):
            raise TracedError("an array was put into a static field or a function")
        self._leaves = tuple(
            _Given(places[id(x)]) if id(x) in places else _COMPUTED if eqx.is_array(x) else x
            for x in leaves
        )
        return [x for x in new if eqx.is_array(x)]


_program = remembered(512)(Program)


# On a CPU they halve the time to compile a random start, and keep its numbers bit for bit. They are
# not used for weights, because the older emitters of XLA sum in another order.
_QUICK: dict[str, Any] = {"xla_backend_optimization_level": 2}
if jax.__version_info__ < (0, 11):  # later versions have no older emitters
    _QUICK["xla_cpu_use_fusion_emitters"] = False


@functools.cache
def _quick_to_compile() -> dict[str, Any] | None:
    """XLA's options for a random start, which takes far longer to compile than to run.

    `None` for another backend, or if `XLA_FLAGS` sets one of these options.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    is_left_alone = jax.default_backend() != "cpu" or any(name in flags for name in _QUICK)
    return None if is_left_alone else _QUICK


def _lie_on_a_cpu(arrays: list[Any]) -> bool:
    """Whether LAPACK would decompose `arrays`, rather than an accelerator's library."""
    devices = (device for x in arrays if isinstance(x, jax.Array) for device in x.devices())
    return "cpu" in ({device.platform for device in devices} or {jax.default_backend()})


def _holds_infinity(array: Any) -> bool:
    is_here = not isinstance(array, jax.Array) or array.is_fully_addressable
    is_floating = jnp.issubdtype(array.dtype, jnp.inexact)
    return is_here and is_floating and bool(np.any(np.isinf(np.asarray(array))))


# JAX does not look for traced arrays in static fields and in functions. A result that keeps such an
# array is broken as soon as its program has been compiled.
def _static_fields_keep_tracer(treedef: Any) -> bool:
    data = treedef.node_data()
    return data is not None and (
        any(map(_keeps_tracer, jtu.tree_leaves(data[1])))
        or any(map(_static_fields_keep_tracer, treedef.children()))
    )


def _keeps_tracer(value: Any) -> bool:
    """Whether `value` is a traced array, or a function that closes over a traced array."""
    if isinstance(value, functools.partial):
        return any(map(_keeps_tracer, (value.func, *value.args, *value.keywords.values())))
    value = inspect.unwrap(value) if callable(value) else value  # as `jax.jit` wraps a function
    cells = getattr(value, "__closure__", None) or ()
    return isinstance(value, Tracer) or any(_keeps_tracer(cell.cell_contents) for cell in cells)
