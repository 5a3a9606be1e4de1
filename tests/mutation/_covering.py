"""Which tests run a line, as `make coverage` recorded."""

import pathlib
import random
from collections.abc import Sequence

from coverage import CoverageData


class Covering:
    """The tests that run each line of the sources.

    **Arguments:**

    - `data`: a file of coverage data with a context for each test.
    - `root`: where the sources were when it was written.
    """

    def __init__(self, data: pathlib.Path, root: pathlib.Path):
        self._data = CoverageData(str(data))
        self._data.read()
        self._root = root
        self._lines: dict[pathlib.Path, dict[int, list[str]]] = {}

    def tests(self, path: pathlib.Path, lines: Sequence[int], most: int) -> list[str]:
        """Up to `most` tests that run one of the lines; of those that run the file, if none does.

        A line that only runs when its module is imported belongs to no test.
        """
        by_line = self._of(path)
        found = {test for line in lines for test in by_line.get(line, ()) if test}
        if not found:
            found = {test for tests in by_line.values() for test in tests if test}
        # Their order is random, so that the sample is of many kinds of tests.
        return random.Random(0).sample(sorted(found), min(most, len(found)))

    def _of(self, path: pathlib.Path) -> dict[int, list[str]]:
        if path not in self._lines:
            by_line = self._data.contexts_by_lineno(str(self._root / path))
            self._lines[path] = {
                line: sorted({context.partition("|")[0] for context in contexts})
                for line, contexts in by_line.items()
            }
        return self._lines[path]
