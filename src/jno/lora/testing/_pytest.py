"""The kit as a pytest decorator. pytest itself is imported when it is used, not before."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ._case import WrapperCase
from ._conformance import ConformanceError
from ._run import CHECKS, wrapper_checks


def parametrize_with_checks(
    cases: Iterable[WrapperCase], expected_failures: Mapping[str, str] | None = None
) -> Callable[[Any], Any]:
    """Decorate a test that takes `check` and calls it: `def test_conformance(check): check()`.

    **Arguments:**

    - `cases`: what to check.
    - `expected_failures`: reasons, by check id (`"merge-equals-call"`, for every case) or by
        `"case:check"`. Strict: an expected failure that passes fails the test, so that the list
        stays true.

    **Raises:** `ValueError` for an expected failure that names no check of these cases.
    """
    import pytest

    expected = dict(expected_failures or {})
    cases = list(cases)
    known = {*CHECKS, *(f"{case}:{check}" for case in cases for check in CHECKS)}
    unknown = sorted(expected.keys() - known)
    if unknown:
        raise ValueError(
            f"`expected_failures` names {unknown}, which is no check of these cases. Checks: "
            f"{', '.join(CHECKS)}; cases: {', '.join(map(str, cases))}."
        )
    parameters: list[Any] = []
    for case in cases:
        for name, check in wrapper_checks(case).items():
            reason = expected.get(f"{case}:{name}", expected.get(name))
            marks = (
                []
                if reason is None
                else [pytest.mark.xfail(strict=True, reason=reason, raises=ConformanceError)]
            )
            parameters.append(pytest.param(check, id=f"{case}:{name}", marks=marks))
    return pytest.mark.parametrize("check", parameters)
