"""Which tests run a line, as `make coverage` recorded."""

import collections
import functools
import pathlib
from collections.abc import Sequence

from coverage import CoverageData


class Covering:
    """The tests that run each line of the sources, by a file of coverage data with contexts.

    The sources were in `root` when it was written.
    """

    def __init__(self, data: pathlib.Path, root: pathlib.Path):
        self._data = CoverageData(str(data))
        self._data.read()
        self._root = root
        self._lines: dict[pathlib.Path, dict[int, list[str]]] = {}

    def tests(self, path: pathlib.Path, lines: Sequence[int], most: int, few: int) -> list[str]:
        """Up to `most` tests that run one of the lines, or else the file and the interface.

        The first `few` run little else: they are quick, and written for these lines. After these,
        each test is asked once before any is asked with other parameters.
        """
        by_line = self._of(path)
        found = {test for line in lines for test in by_line.get(line, ()) if test}
        imported = [] if found else ["tests/api"]
        if not found:
            found = {test for tests in by_line.values() for test in tests if test}
        narrow = sorted(found, key=lambda test: (self._breadth[test], test))
        names: collections.Counter[str] = collections.Counter()
        turns: dict[str, int] = {}
        for test in narrow[few:]:
            name = test.partition("[")[0]
            turns[test] = names[name]
            names[name] += 1
        return [*imported, *narrow[:few], *sorted(turns, key=lambda test: turns[test])][:most]

    @functools.cached_property
    def _breadth(self) -> collections.Counter[str]:
        """How many lines of all sources each test runs."""
        files = map(pathlib.Path, self._data.measured_files())
        lines = [self._of(file.relative_to(self._root)) for file in files]
        return collections.Counter(test for of in lines for tests in of.values() for test in tests)

    def _of(self, path: pathlib.Path) -> dict[int, list[str]]:
        if path not in self._lines:
            by_line = self._data.contexts_by_lineno(str(self._root / path))
            self._lines[path] = {
                line: sorted({context.partition("|")[0] for context in contexts})
                for line, contexts in by_line.items()
            }
        return self._lines[path]
