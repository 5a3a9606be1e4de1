"""All checks by their ids, and functions that run a case's checks, with or without pytest."""

import contextlib
import dataclasses
import fnmatch
import functools
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

from jno.lora import SelectionError
from jno.lora.extending import tracked, warn

# The modules of checks register them in `CHECKS` in this order. The contract comes first.
from . import _checks_class  # noqa: F401

# isort: split
from . import (  # noqa: F401
    _checks_derivatives,
    _checks_inputs,
    _checks_matrix,
    _checks_optional,
    _checks_symmetries,
    _checks_together,
    _checks_transforms,
    _checks_values,
    _conformance,
)
from ._case import WrapperCase
from ._causes import presupposed
from ._conformance import ConformanceError

# Every check by its id. Ids are stable, because `expected_failures` lists them.
CHECKS: Mapping[str, Callable[[WrapperCase], str | None]] = _conformance.CHECKS
# The ids of the checks whose failure is advice.
ADVICE: frozenset[str] = frozenset(_conformance.ADVICE)


@dataclasses.dataclass(frozen=True)
class CheckResult:
    """The outcome of a check: it failed with an `error`, was `not_applicable`, or passed.

    `not_applicable` is the reason, such as "the adapter does not claim stacked layers".
    """

    case: str
    check: str
    error: ConformanceError | None
    not_applicable: str | None = None

    @property
    def level(self) -> Literal["required", "advice"]:
        """`"required"` if all users rely on the check, `"advice"` if only some do."""
        return "advice" if self.check in ADVICE else "required"


def wrapper_checks(case: WrapperCase) -> dict[str, Callable[[], str | None]]:
    """The checks of `case` (see `case.checks`): functions without arguments, by their ids.

    A check (also advice) raises `ConformanceError` if it fails. It returns `None` if it passes, and
    the reason if it is not applicable. Checks set strict dtype promotion and forbid rank promotion.
    """
    return {name: functools.partial(CHECKS[name], case) for name in _matching(case.checks)}


def _matching(patterns: Iterable[str]) -> tuple[str, ...]:
    """The ids of the checks that match one of the patterns.

    **Raises:** `SelectionError` if a pattern matches no check.
    """
    matches: set[str] = set()
    for pattern in patterns:
        if not (names := fnmatch.filter(CHECKS, pattern)):
            raise SelectionError(f"{pattern!r} is not a check. Checks: {', '.join(CHECKS)}.")
        matches.update(names)
    return tuple(name for name in CHECKS if name in matches)


def run_checks(
    case: WrapperCase, only: Iterable[str] = ("*",), *, until_failure: bool = False
) -> list[CheckResult]:
    """Run the checks of `case`, continuing after failures. Shows its progress.

    **Arguments:**

    - `only`: ids of checks; `*` and `?` stand for any letters. By default all checks of the case.
    - `until_failure`: whether to run likely causes first, and to stop at the first required check
        that fails.

    **Raises:** `SelectionError` if a pattern in `only` or in `case.checks` matches no check.
    """
    checks = wrapper_checks(case)
    chosen = [name for name in _matching(only) if name in checks]
    if until_failure:
        chosen.sort(key=lambda name: len(presupposed(name)))
    results: list[CheckResult] = []
    with contextlib.closing(tracked(chosen, f"Checking {case}")) as names:
        for name in names:
            try:
                results.append(CheckResult(str(case), name, None, checks[name]()))
            except ConformanceError as err:
                results.append(CheckResult(str(case), name, err))
                if until_failure and name not in ADVICE:
                    break
    return results


def causes_of(results: Iterable[CheckResult]) -> dict[CheckResult, str]:
    """The failures that may follow from a failure of the same case, each with the id of the cause.

    A cause follows from no other failure.
    """
    failed = [result for result in results if result.error is not None]
    causes: dict[CheckResult, str] = {}
    for result in failed:
        earlier = presupposed(result.check)
        before = [r.check for r in failed if r.case == result.case and r.check in earlier]
        if before:
            causes[result] = min(before, key=lambda check: len(presupposed(check)))
    return causes


def messages(failed: Iterable[CheckResult]) -> list[str]:
    """The messages of failed checks, one for each cause. Advice comes last, and is called so.

    A failure that may follow from another failure of the same case is only named in the message of
    its cause. Checks that stopped at the same line share a message, as do cases in which a check
    found the same problem, apart from numbers. The cause of most failures comes first.
    """
    failed = [result for result in failed if result.error is not None]
    causes = causes_of(failed)
    groups: dict[object, list[CheckResult]] = {}
    for result in failed:
        error: Any = result.error
        if result not in causes:
            check = "" if error.place else result.check
            cause = error.place or _NUMBER.sub("", error.problem)
            groups.setdefault((result.level, check, cause), []).append(result)

    def following(group: list[CheckResult]) -> list[str]:
        members = {(result.case, result.check) for result in group}
        return [*dict.fromkeys(r.check for r, by in causes.items() if (r.case, by) in members)]

    by_effect = [(group, following(group)) for group in groups.values()]
    by_effect.sort(key=lambda pair: (pair[0][0].level == "advice", -len(pair[1])))
    return [_message(*pair) for pair in by_effect]


_NUMBER = re.compile(r"\d+(\.\d+)?(e[+-]\d+)?")


def _message(results: list[CheckResult], following: list[str]) -> str:
    case, *further_cases = dict.fromkeys(result.case for result in results)
    checks = dict.fromkeys(result.check for result in results)
    error: Any = results[0].error
    text = f"{error}"
    if len(checks) > 1:
        names = ", ".join(checks)
        text = f"[{names}] {case}: {len(checks)} checks stopped at an exception, {error.exception}"
    lines = [text if results[0].level == "required" else f"Advice: {text}"]
    if further_cases:
        lines.append(f"The same in {', '.join(further_cases)}.")
    if following:
        lines.append(f"Repair this first. These may fail because of it: {', '.join(following)}.")
    return "\n".join(lines)


def check_wrapper(case: WrapperCase, *, strict: bool = False) -> None:
    """Run every check of `case`. Advice that fails is a `JnoLoraWarning`.

    **Arguments:** `strict`: whether advice that fails is an error too.

    **Raises:** `ConformanceError`, which lists every broken promise.
    """
    results = run_checks(case)
    failed = [result for result in results if result.error is not None]
    broken = [result for result in failed if strict or result.level == "required"]
    if broken:
        listed = "\n\n".join(messages(broken))
        raise ConformanceError(f"{case} fails {len(broken)} of {len(results)} checks.\n\n{listed}")
    for message in messages(failed):
        warn(message)


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
        `"case:check"`. If such a check passes, the test fails, so that the list stays true.
    - `strict`: whether advice that fails fails the test.

    **Raises:** `ValueError` for an expected failure that names no check of these cases.
    """
    import pytest  # imported here because the kit runs without pytest

    expected = dict(expected_failures or {})
    cases = list(cases)
    tests = [(f"{case}:", *item) for case in cases for item in wrapper_checks(case).items()]
    ids = {f"{case}{name}" for test_case, name, _ in tests for case in ("", test_case)}
    if unknown := sorted(expected.keys() - ids):
        raise ValueError(
            f"`expected_failures` names {unknown}, not a check that these cases run. "
            f"Checks: {', '.join(CHECKS)}; cases: {', '.join(map(str, cases))}."
        )
    parameters: list[Any] = []
    for case, name, check in tests:
        reason = expected.get(f"{case}{name}", expected.get(name))
        marks: list[Any] = []
        if reason is not None:
            marks = [pytest.mark.xfail(strict=True, reason=reason, raises=ConformanceError)]
        elif name in ADVICE and not strict:
            check = functools.partial(_advise, check)
        parameters.append(pytest.param(check, id=f"{case}{name}", marks=marks))
    return pytest.mark.parametrize("check", parameters)


def _advise(check: Callable[[], str | None]) -> str | None:
    try:
        return check()
    except ConformanceError as err:
        warn(f"Advice: {err}")
        return None
