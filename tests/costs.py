"""Counts the programs that each test file compiles, for `make test-costs`.

JAX reports each program, also one that is read from the cache on disk. The seconds are those of
compiling (or reading) and of the whole tests, added up over both processes. `tests/core`, which
runs in an environment of its own, is not counted.
"""

import collections
from typing import Any, NamedTuple

import jax
import pytest

_COMPILED = "/jax/core/compile/backend_compile_duration"
_PROPERTY = "programs"


class Cost(NamedTuple):
    """Of one test or one file."""

    programs: int = 0
    compiling: float = 0.0
    seconds: float = 0.0

    def plus(self, other: "Cost") -> "Cost":
        return Cost(*(mine + more for mine, more in zip(self, other, strict=True)))


class Compilations:
    """Counts the programs of each phase of a test, in the process that runs it."""

    def __init__(self) -> None:
        self.durations: list[float] = []
        jax.monitoring.register_event_duration_secs_listener(self._listen)

    def _listen(self, event: str, duration: float, **_: Any) -> None:
        if event == _COMPILED:
            self.durations.append(duration)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
        report = yield
        count = len(self.durations), sum(self.durations)
        report.user_properties = [*report.user_properties, (_PROPERTY, count)]
        self.durations.clear()
        return report


class Costs:
    """Adds the programs up by file, in the process that reports."""

    def __init__(self, shown: int = 10):
        self.shown = shown
        self.files: dict[str, Cost] = collections.defaultdict(Cost)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        programs, compiling = dict(report.user_properties).get(_PROPERTY, (0, 0.0))
        file = report.nodeid.split("::")[0]
        self.files[file] = self.files[file].plus(Cost(programs, compiling, report.duration))

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        terminalreporter.section("compiled programs, by test file")
        terminalreporter.write(self.table())

    def table(self) -> str:
        """The most expensive files, and the sum of all."""
        total = Cost()
        for cost in self.files.values():
            total = total.plus(cost)
        rows = sorted(self.files.items(), key=lambda item: -item[1].programs)[: self.shown]
        lines = ["programs  compiling, s  tests, s  file\n"]
        for name, cost in [*rows, (f"all {len(self.files)} files", total)]:
            lines.append(
                f"{cost.programs:8,}  {cost.compiling:12,.1f}  {cost.seconds:8,.1f}  {name}\n"
            )
        return "".join(lines)
