"""Names beside the points of a figure, placed where they overlap no other name and no point."""

import itertools
import math
from typing import Any, NamedTuple

from .._drawing import GREY

_SIZE = 7
_HEIGHT, _GAP, _NEAR = 8.5, 4, 10  # of a line, between point and name, where no line is needed


class _Box(NamedTuple):
    """A rectangle, in units of 1/72 inch."""

    left: float
    right: float
    bottom: float
    top: float

    def overlaps(self, box: "_Box") -> bool:
        is_beside = self.right <= box.left or box.right <= self.left
        return not (is_beside or self.top <= box.bottom or box.top <= self.bottom)


def name_points(axis: Any, points: dict[str, tuple[float, float]]) -> None:
    """Write each name near its point, with a thin line to a point that is further away.

    The layout of the figure must be final, for example by `figure.draw_without_rendering()`.
    """
    scale = 72 / axis.figure.dpi
    places = {name: axis.transData.transform(point) * scale for name, point in points.items()}
    taken = [_Box(x - 2, x + 2, y - 2, y + 2) for x, y in places.values()]
    for name, (x, y) in sorted(places.items(), key=lambda item: item[1][1]):
        (dx, dy), box = _free_place(x, y, 0.58 * _SIZE * len(name), taken)
        taken.append(box)
        far = math.hypot(dx, dy) > _NEAR
        axis.annotate(
            name,
            points[name],
            (dx, dy),
            textcoords="offset points",
            ha="left" if dx > 0 else "right",
            va="center",
            fontsize=_SIZE,
            arrowprops={"arrowstyle": "-", "color": GREY, "lw": 0.4} if far else None,
        )


def _free_place(
    x: float, y: float, width: float, taken: list[_Box]
) -> tuple[tuple[float, float], _Box]:
    """The nearest offset from the point at which a name of this width overlaps no box."""
    distances = itertools.product((_GAP, 15, 30, 45), range(-90, 91, 3), (1, -1))
    offsets = [(side * dx, dy) for dx, dy, side in distances]
    offsets.sort(key=lambda offset: math.hypot(*offset))
    boxes = [_box(x + dx, y + dy, width if dx > 0 else -width) for dx, dy in offsets]
    free = (
        (offset, box)
        for offset, box in zip(offsets, boxes, strict=True)
        if not any(box.overlaps(other_box) for other_box in taken)
    )
    return next(free, (offsets[0], boxes[0]))


def _box(x: float, y: float, width: float) -> _Box:
    """The box of a name that begins at `x`, or ends there if the width is negative."""
    return _Box(min(x, x + width), max(x, x + width), y - _HEIGHT / 2, y + _HEIGHT / 2)
