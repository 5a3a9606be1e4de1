"""The kit as a pytest decorator. pytest itself is imported when it is used, not before."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from .._errors import warn
from ._case import WrapperCase
from ._conformance import ConformanceError
from ._run import ADVICE, CHECKS, wrapper_checks


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
    import pytest

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
