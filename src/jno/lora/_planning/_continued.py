"""Targets that end in a number, and select a path in which another digit continues the number."""

import re
from collections.abc import Iterator

from .._paths import bullets, show_path
from ._walk import Walk

_FEW = 3
# "layers/1", "layers/(1|2)" and "layers/[01]", but not "layers/[0-9]".
_ENDS_IN_NUMBER = re.compile(r"(?<![\\-])\d[\])]*$")


def continued_numbers(walk: Walk) -> Iterator[str]:
    """For each target such as `layers/1`, which of the selected paths are like `layers/10`."""
    for index, rule in enumerate(walk.rules):
        target = rule.target
        if not isinstance(target, re.Pattern) or not _ENDS_IN_NUMBER.search(target.pattern):
            continue
        paths = [
            row.path
            for row in walk.rows
            if row.spec == index
            and all(row.path[match.end() :][:1].isdigit() for match in target.finditer(row.path))
        ]
        if paths:
            yield (
                f"The target {target.pattern!r} ends in a number, and also selects paths in which "
                f"the number goes on:\n{bullets(map(show_path, paths), _FEW)}\n"
                f"To leave them out, write {target.pattern + '(/|$)'!r}."
            )
