"""All checks by their ids, and how the checks of a case are run: with pytest or without."""

import contextlib
import dataclasses
import fnmatch
import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

from .._errors import SelectionError, warn
from .._showing import tracked

# The modules of checks put them into `CHECKS`, in this order.
from . import (  # noqa: F401
    _checks_class,
    _checks_data,
    _checks_derivatives,
    _checks_rank,
    _checks_transforms,
    _checks_values,
    _conformance,
)
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
        """`"required"` if users rely on the check, `"advice"` if not all of them need it."""
        return "advice" if self.check in ADVICE else "required"


def wrapper_checks(case: WrapperCase) -> dict[str, Callable[[], str | None]]:
    """The checks of `case`: functions without arguments, by their ids.

    Each raises `ConformanceError` if it fails, advice too. It returns `None` if it passes, and the
    reason if it is not applicable. They run under strict dtype promotion and with rank promotion
    forbidden, whatever the configuration is.
    """
    return {name: functools.partial(check, case) for name, check in CHECKS.items()}


def run_checks(case: WrapperCase, only: Iterable[str] = ("*",)) -> list[CheckResult]:
    """Run the checks of `case`, whether the others pass or not. Shows its progress.

    **Arguments:** `only`: ids of checks; `*` and `?` stand for any letters. By default all.

    **Raises:** `SelectionError` for one that is not the id of a check.
    """
    chosen: set[str] = set()
    for pattern in only:
        found = fnmatch.filter(CHECKS, pattern)
        if not found:
            raise SelectionError(f"{pattern!r} is not a check. Checks: {', '.join(CHECKS)}.")
        chosen.update(found)
    wanted = tuple(name for name in CHECKS if name in chosen)
    results: list[CheckResult] = []
    with contextlib.closing(tracked(wanted, f"Checking {case}")) as names:
        for name in names:
            try:
                results.append(CheckResult(str(case), name, None, CHECKS[name](case)))
            except ConformanceError as err:
                results.append(CheckResult(str(case), name, err))
    return results


# An adapter that fails one of these fails others for the same reason.
_CAUSES = ("contract", "trainable-fields", "identity-at-init", "merge-equals-call")


def messages(failed: Iterable[CheckResult]) -> list[str]:
    """The texts about checks that failed: one text for all that stopped at the same line.

    Failures that explain others come first.
    """
    alike: dict[tuple[str, ...], list[CheckResult]] = {}
    for result in sorted(failed, key=lambda result: result.check not in _CAUSES):
        found = result.error and result.error.exception
        key = (found.kind, found.place) if found else (result.check,)
        alike.setdefault((result.case, *key), []).append(result)
    return [_message(results) for results in alike.values()]


def _message(results: list[CheckResult]) -> str:
    error = results[0].error
    text = f"{error}"
    if len(results) > 1 and error is not None:
        names = ", ".join(result.check for result in results)
        text = (
            f"[{names}] {results[0].case}: {len(results)} checks stopped at an exception, "
            f"{error.exception}"
        )
    return text


def check_wrapper(case: WrapperCase, *, strict: bool = False) -> None:
    """Run every check of `case`. Advice that fails is a `JnoLoraWarning`.

    **Arguments:**

    - `strict`: whether advice counts like the rest.

    **Raises:** `ConformanceError` that lists every broken promise.
    """
    failed = [result for result in run_checks(case) if result.error is not None]
    broken = [result for result in failed if strict or result.level == "required"]
    if broken:
        listed = "\n\n".join(messages(broken))
        raise ConformanceError(f"{case} fails {len(broken)} of {len(CHECKS)} checks.\n\n{listed}")
    for message in messages(failed):
        warn(f"Advice: {message}")


def parametrize_with_checks(
    cases: Iterable[WrapperCase],
    expected_failures: Mapping[str, str] | None = None,
    *,
    strict: bool = False,
) -> Callable[[Any], Any]:
    """Decorate a test that takes `check` and calls it: `def test_conformance(check): check()`.

    Advice that fails is a `JnoLoraWarning`, and the test passes.

    **Arguments:**

    - `cases`: the adapters and layers to check.
    - `expected_failures`: reasons, by check id (`"merge-equals-call"`, for every case) or by
        `"case:check"`. An expected failure that passes fails the test, so that the list stays true.
    - `strict`: whether advice that fails fails the test.

    **Raises:** `ValueError` for an expected failure that does not name a check of these cases.
    """
    import pytest  # only here: the kit runs without it

    expected = dict(expected_failures or {})
    cases = list(cases)
    known = {*CHECKS, *(f"{case}:{check}" for case in cases for check in CHECKS)}
    unknown = sorted(expected.keys() - known)
    if unknown:
        raise ValueError(
            f"`expected_failures` names {unknown}, not a check of these cases. Checks: "
            f"{', '.join(CHECKS)}; cases: {', '.join(map(str, cases))}."
        )
    parameters: list[Any] = []
    for case in cases:
        for name, check in wrapper_checks(case).items():
            reason = expected.get(f"{case}:{name}", expected.get(name))
            marks: list[Any] = []
            if reason is not None:
                marks = [pytest.mark.xfail(strict=True, reason=reason, raises=ConformanceError)]
            elif name in ADVICE and not strict:
                check = _advising(check)
            parameters.append(pytest.param(check, id=f"{case}:{name}", marks=marks))
    return pytest.mark.parametrize("check", parameters)


def _advising(check: Callable[[], str | None]) -> Callable[[], str | None]:
    """`check`, with a warning in the place of its error."""

    def advising() -> str | None:
        try:
            return check()
        except ConformanceError as err:
            warn(f"Advice: {err}")
            return None

    return advising
