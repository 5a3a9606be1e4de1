"""Repeated structure in lists of paths: `layers/[0-11]/query` for twelve paths in one line."""

import itertools
import re
from collections.abc import Hashable, Iterable
from typing import TypeVar

R = TypeVar("R", bound=Hashable)

# A path component that counts. "007" is a name.
_INDEX = re.compile(r"0|[1-9][0-9]*")


def grouped(rows: Iterable[tuple[str, R]]) -> list[tuple[str, int, R]]:
    """Join the rows that differ only in the indices of their paths, in linear time.

    The result says exactly which paths there are. Two stages with three blocks and one with nine
    give `stages/[0-1]/blocks/[0-2]` and `stages/2/blocks/[0-8]`.

    - `rows`: slash-joined paths, each with the rest of its row.

    **Returns:** `(path, how many rows, the rest)`, in the order of the first row of each group.
    """
    families: dict[tuple[tuple[str | None, ...], R], dict[_Box, int]] = {}
    for path, rest in rows:
        parts = path.split("/")
        template = tuple(None if _INDEX.fullmatch(part) else part for part in parts)
        indices = tuple((int(part),) for part in parts if _INDEX.fullmatch(part))
        counts = families.setdefault((template, rest), {})
        counts[indices] = counts.get(indices, 0) + 1
    found: list[tuple[str, int, R]] = []
    for (template, rest), counts in families.items():
        for box, count in _joined(counts).items():
            sets = iter(box)
            parts = (_ranges(next(sets)) if part is None else part for part in template)
            found.append(("/".join(parts), count, rest))
    return found


# The values of each index of a path, which stand for all their combinations.
_Box = tuple[tuple[int, ...], ...]


def _joined(boxes: dict[_Box, int]) -> dict[_Box, int]:
    """Boxes that agree in all sets but one become one, from the last index to the first."""
    depth = len(next(iter(boxes)))
    for position in reversed(range(depth)):
        values: dict[_Box, list[int]] = {}
        counts: dict[_Box, int] = {}
        for box, count in boxes.items():
            others = box[:position] + box[position + 1 :]
            values.setdefault(others, []).extend(box[position])
            counts[others] = counts.get(others, 0) + count
        boxes = {
            (*others[:position], tuple(sorted(found)), *others[position:]): counts[others]
            for others, found in values.items()
        }
    return boxes


def _ranges(values: tuple[int, ...]) -> str:
    """`7` for one value, `[0-3,7]` for more."""
    if len(values) == 1:
        return str(values[0])
    # Values that follow each other are all equally far from their positions.
    runs = itertools.groupby(enumerate(values), key=lambda it: it[1] - it[0])
    runs = ([value for _, value in run] for _, run in runs)
    shown = (str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
    return f"[{','.join(shown)}]"
