"""Prints a line for each part of the suite as its last test ends: `tests/models: 812 tests, 74 s`.

A part is a folder of `tests/` or a plugin. The seconds are those of its tests, added up, so that
two processes need half of them.
"""

import collections
from typing import Any

import pytest


def part_of(nodeid: str) -> str:
    """`plugins/jno-lora-zoo` for a test in `plugins/jno-lora-zoo/tests/test_oracles.py`."""
    return "/".join(nodeid.split("::")[0].split("/")[:2])


class Parts:
    """Counts the tests of each part, in the process that reports."""

    def __init__(self, terminal: Any):
        self.terminal = terminal
        self.collected: set[str] = set()
        self.ended: collections.Counter[str] = collections.Counter()
        self.seconds: dict[str, float] = collections.defaultdict(float)
        self.tests: collections.Counter[str] = collections.Counter()

    def collect(self, nodeids: list[str]) -> None:
        if not self.collected:
            self.collected.update(nodeids)
            self.tests.update(map(part_of, self.collected))

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self.collect([item.nodeid for item in session.items])

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, node: Any, ids: list[str]) -> None:
        self.collect(ids)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        part = part_of(report.nodeid)
        self.seconds[part] += report.duration
        if report.when != "teardown":
            return
        self.ended[part] += 1
        if self.ended[part] == self.tests[part] and len(self.tests) > 1:
            seconds = round(self.seconds[part])
            self.terminal.write(f"\n{part}: {self.tests[part]} tests, {seconds} s\n")
