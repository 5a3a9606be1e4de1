"""All checks by their ids, and how they are run."""

import contextlib
import dataclasses
import functools
import sys
import traceback
from collections.abc import Callable, Mapping
from typing import Literal

import jax

from .._errors import warn
from .._showing import tracked

# The modules of checks put them into `CHECKS`, in this order.
from . import _checks_class, _checks_sharding, _checks_transforms, _checks_values, _conformance  # noqa: F401
from ._case import WrapperCase
from ._conformance import ConformanceError

# Every check by its id. Ids are stable: they are what `expected_failures` names. A check that does
# not concern a case returns the reason.
CHECKS: Mapping[str, Callable[[WrapperCase], str | None]] = _conformance.CHECKS
# The ids of the checks whose failure is advice.
ADVICE: frozenset[str] = frozenset(_conformance.ADVICE)


@dataclasses.dataclass(frozen=True)
class CheckResult:
    """The outcome of one check: it failed with an `error`, or was `not_applicable`, or passed.

    `not_applicable` is the reason: that the adapter does not claim stacked layers, for example.
    """

    case: str
    check: str
    error: ConformanceError | None
    not_applicable: str | None = None

    @property
    def level(self) -> Literal["required", "advice"]:
        """Whether users rely on the check, or it is advice, on a quality that not all need."""
        return "advice" if self.check in ADVICE else "required"


def wrapper_checks(case: WrapperCase) -> dict[str, Callable[[], str | None]]:
    """The checks of `case`: functions without arguments, by their ids.

    Each raises `ConformanceError` if it fails, advice too. It returns `None` if it passes, and the
    reason if it is not applicable. They run under strict dtype promotion and with rank promotion
    forbidden, whatever the configuration is.
    """
    return {name: functools.partial(_run, name, case) for name in CHECKS}


def run_checks(case: WrapperCase) -> list[CheckResult]:
    """Run every check of `case`, whether the others pass or not. Shows its progress."""
    results: list[CheckResult] = []
    with contextlib.closing(tracked(tuple(CHECKS), f"Checking {case}")) as names:
        for name in names:
            try:
                results.append(CheckResult(str(case), name, None, _run(name, case)))
            except ConformanceError as err:
                results.append(CheckResult(str(case), name, err))
    return results


def check_wrapper(case: WrapperCase, *, strict: bool = False) -> None:
    """Run every check of `case`. Advice that fails is a `JnoLoraWarning`.

    **Arguments:**

    - `strict`: whether advice counts like the rest.

    **Raises:** `ConformanceError` that lists every broken promise.
    """
    failed = [result for result in run_checks(case) if result.error is not None]
    broken = [result for result in failed if strict or result.level == "required"]
    if broken:
        listed = "\n\n".join(f"{result.error}" for result in broken)
        raise ConformanceError(f"{case} fails {len(broken)} of {len(CHECKS)} checks.\n\n{listed}")
    for result in failed:
        warn(f"Advice: {result.error}")


def _run(name: str, case: WrapperCase) -> str | None:
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        try:
            return CHECKS[name](case)
        except ConformanceError as err:
            raise ConformanceError(f"[{name}] {case}: {err}") from err
        except Exception as err:
            where = _author_frame(err, case.wrapper)
            raise ConformanceError(
                f"[{name}] {case}: the check stopped at an exception, {type(err).__name__}: {err}\n"
                f"(raised in {where.name}, {where.filename}:{where.lineno}: {where.line})\n"
                f"What is checked: {CHECKS[name].__doc__}"
            ) from err


def _author_frame(err: Exception, cls: type) -> traceback.FrameSummary:
    """The last frame of `err` in the adapter's own module, or in that of a class it inherits."""
    frames = traceback.extract_tb(err.__traceback__)
    modules = {c.__module__ for c in cls.__mro__ if not c.__module__.startswith("jno.lora.")}
    files = {getattr(sys.modules.get(module), "__file__", None) for module in modules}
    own = [frame for frame in frames if frame.filename in files]
    return (own or frames)[-1]
