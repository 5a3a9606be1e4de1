"""The two levels of checks, how a check is run, and the comparisons that checks share."""

import functools
import sys
import traceback
from collections.abc import Callable
from typing import Any, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

# A check of a case. It returns the reason if it does not concern the case.
Check: TypeAlias = Callable[[Any], str | None]

# The checks by their ids, and the ids of those whose failure is advice.
CHECKS: dict[str, Check] = {}
ADVICE: set[str] = set()


class ConformanceError(AssertionError):
    """An adapter fails a check. The message says which, what came, and what to do."""


def required(remedy: str = "", *, is_advice: bool = False) -> Callable[[Check], Check]:
    """Register a check of a promise: without it a documented use fails, or nothing trains.

    - `remedy`: what to do about a failure, where `require` does not say it.
    - `is_advice`: whether it is a quality instead: without it an adapter works for fewer layers, or
        less precisely.
    """

    def register(check: Check) -> Check:
        name = check.__name__.removeprefix("check_").replace("_", "-")

        @functools.wraps(check)
        def checked(case: Any) -> str | None:
            with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
                try:
                    return check(case)
                except ConformanceError as err:
                    problem, own = err.args
                    raise ConformanceError(
                        f"[{name}] {case}: {problem}\nWhat to do: {own or remedy}"
                    ) from err
                except Exception as err:
                    where = _author_frame(err, case.wrapper)
                    raise ConformanceError(
                        f"[{name}] {case}: the check stopped at an exception, "
                        f"{type(err).__name__}: {err}\n"
                        f"(raised in {where.name}, {where.filename}:{where.lineno}: {where.line})\n"
                        f"What is checked: {check.__doc__}"
                    ) from err

        CHECKS[name] = checked
        if is_advice:
            ADVICE.add(name)
        return checked

    return register


advice = functools.partial(required, is_advice=True)


def _author_frame(err: Exception, cls: type) -> traceback.FrameSummary:
    """The last frame of `err` in the adapter's own module, or in that of a class it inherits."""
    frames = traceback.extract_tb(err.__traceback__)
    modules = {c.__module__ for c in cls.__mro__ if not c.__module__.startswith("jno.lora.")}
    files = {getattr(sys.modules.get(module), "__file__", None) for module in modules}
    own = [frame for frame in frames if frame.filename in files]
    return (own or frames)[-1]


def require(condition: Any, problem: str, remedy: str = "") -> None:
    """**Raises:** `ConformanceError` unless `condition` holds."""
    if not condition:
        raise ConformanceError(problem, remedy)


def require_close(
    actual: PyTree, expected: PyTree, bound: float, problem: str, remedy: str = ""
) -> None:
    """**Raises:** `ConformanceError` if the relative error is larger than `bound`."""
    error = relative_error(actual, expected)
    require(error <= bound, f"{problem}: relative error {error:.1e}, allowed {bound:.1e}.", remedy)


def relative_error(actual: PyTree, expected: PyTree) -> float:
    """The largest difference between two outputs, relative to the largest expected number."""
    actual_leaves, expected_leaves = jax.tree.leaves(actual), jax.tree.leaves(expected)
    if [jnp.shape(a) for a in actual_leaves] != [jnp.shape(e) for e in expected_leaves]:
        return float("inf")
    worst = 0.0
    for a, e in zip(actual_leaves, expected_leaves, strict=True):
        wide = np.complex128 if np.iscomplexobj(a) or np.iscomplexobj(e) else np.float64
        a, e = np.asarray(a, wide), np.asarray(e, wide)
        if a.size:
            error = np.max(np.abs(a - e)) / max(float(np.max(np.abs(e))), 1e-3)
            worst = max(worst, float(error)) if np.isfinite(error) else float("inf")
    return worst


def same_bits(a: PyTree, b: PyTree) -> bool:
    """Whether the arrays of two trees agree in shape, dtype and every bit."""

    def content(tree: PyTree) -> list[Any]:
        arrays = (jax.random.key_data(x) if is_key(x) else x for x in arrays_of(tree))
        return [(x.shape, x.dtype, np.asarray(x).tobytes()) for x in arrays]

    return content(a) == content(b)


def arrays_of(tree: PyTree) -> list[Any]:
    """The leaves of `tree` that are arrays."""
    return [leaf for leaf in jax.tree.leaves(tree) if eqx.is_array(leaf)]


def is_key(array: Any) -> bool:
    """Whether it is a typed PRNG key."""
    return bool(jnp.issubdtype(array.dtype, jax.dtypes.prng_key))
