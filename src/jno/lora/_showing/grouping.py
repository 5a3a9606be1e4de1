"""Repeated structure in lists of paths: `layers/[0-11]/query` for twelve paths in one line."""

import re
from collections.abc import Hashable, Iterable
from typing import TypeVar

R = TypeVar("R", bound=Hashable)

# A path component that is an index. "007" is a name.
_INDEX = re.compile(r"0|[1-9][0-9]*")


def grouped(rows: Iterable[tuple[str, R]]) -> list[tuple[str, int, R]]:
    """Join the rows that differ only in the indices of their paths, in linear time.

    The result describes exactly the given paths. Two stages with three blocks and one stage with
    nine give `stages/[0-1]/blocks/[0-2]` and `stages/2/blocks/[0-8]`.

    - `rows`: slash-joined paths, each with the cells of its row.

    **Returns:** `(path, how many rows, cells)`, in the order of the first row of each group.
    """
    families: dict[tuple[tuple[str | None, ...], R], dict[_Box, int]] = {}
    for path, cells in rows:
        names = path.split("/")
        template = tuple(None if _INDEX.fullmatch(name) else name for name in names)
        indices = tuple((int(name),) for name in names if _INDEX.fullmatch(name))
        counts = families.setdefault((template, cells), {})
        counts[indices] = counts.get(indices, 0) + 1
    groups: list[tuple[str, int, R]] = []
    for (template, cells), counts in families.items():
        for box, count in _joined(counts).items():
            sets = iter(box)
            names = (_ranges(next(sets)) if name is None else name for name in template)
            groups.append(("/".join(names), count, cells))
    return groups


# The values of each index of a path, which stand for all their combinations.
_Box = tuple[tuple[int, ...], ...]


def _joined(boxes: dict[_Box, int]) -> dict[_Box, int]:
    """Join boxes that agree in all sets but one, from the last index to the first."""
    depth = len(next(iter(boxes)))
    for position in reversed(range(depth)):
        values: dict[_Box, list[int]] = {}
        counts: dict[_Box, int] = {}
        for box, count in boxes.items():
            fixed = box[:position] + box[position + 1 :]
            values.setdefault(fixed, []).extend(box[position])
            counts[fixed] = counts.get(fixed, 0) + count
        boxes = {
            (*fixed[:position], tuple(sorted(indices)), *fixed[position:]): counts[fixed]
            for fixed, indices in values.items()
        }
    return boxes


def _ranges(values: tuple[int, ...]) -> str:
    """`7` for one value, `[0-3,7]` for more."""
    if len(values) == 1:
        return str(values[0])
    runs: list[list[int]] = []
    for value in values:
        if runs and value == runs[-1][-1] + 1:
            runs[-1].append(value)
        else:
            runs.append([value])
    shown = (str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
    return f"[{','.join(shown)}]"
