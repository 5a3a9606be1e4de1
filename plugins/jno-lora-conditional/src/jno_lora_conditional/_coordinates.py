"""The coordinate of a parameter in which adapters are linear: `z`, its logarithm, and others."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from jno.lora import SelectionError, Table
from jno.lora.extending import Printed, table, warn

from ._bases import COORDINATES, Basis, Function, Powers, coordinate_named


@dataclasses.dataclass(frozen=True)
class CoordinateRow:
    """One coordinate `u`.

    - `growth`: by value, `sqrt(e^2 - e_0^2) / |u|`, for the error `e` of the untouched model there,
        and its error `e_0` at the source.
    - `spread`: the largest growth over the smallest. 1 if the coordinate is right.
    """

    coordinate: str
    growth: tuple[float, ...]
    spread: float


@dataclasses.dataclass(frozen=True, repr=False)
class CoordinateReport(Printed[CoordinateRow]):
    """The coordinates, the smallest spread first. Prints as a table.

    - `values`: the values of the parameter.
    - `basis`: the basis of the first coordinate, of degree 1, with the distance to the farthest
        value as its unit.
    """

    rows: tuple[CoordinateRow, ...]
    values: tuple[float, ...]
    basis: Basis

    @property
    def best(self) -> str:
        """The coordinate with the smallest spread."""
        return self.rows[0].coordinate

    def __repr__(self) -> str:
        return f"CoordinateReport(best={self.best!r}, spread={self.rows[0].spread:.3g})"

    def _table(self) -> Table:
        columns = [("coordinate", "left")]
        columns += [(f"{value:g}", "right") for value in self.values] + [("spread", "right")]
        cells = (
            (row.coordinate, *(f"{g:.3g}" for g in row.growth), f"{row.spread:.2f}")
            for row in self.rows
        )
        caption = "The smallest spread is the right coordinate."
        if not np.isfinite(self.rows[0].spread):
            caption = (
                "At some value the error is not larger than at the source: nothing can be told."
            )
        return table("Growth of the error by value", columns, cells, caption)


def choose_coordinate(
    model: Any,
    error: Callable[[Any, Any], Any],
    data_by_value: Mapping[float, Any],
    source: float,
    *,
    coordinates: Sequence[str] | Mapping[str, Callable[[Any], Any]] | None = None,
) -> CoordinateReport:
    """The coordinate of a parameter in which the untouched model moves away at a constant rate.

    Nothing is trained, and no test data are needed. In the right coordinate `u`, the distance of
    the pretrained model from the solution is proportional to `|u|`, so that
    `sqrt(e^2 - e_0^2) / |u|` is the same for all values.

    ```python
    report = choose_coordinate(model, error, {0.1: data, 0.06: data_2, 0.03: data_3}, source=0.1)
    print(report)
    conditional = Conditional(net, report.basis)
    ```

    **Arguments:**

    - `model`: the pretrained model.
    - `error`: `error(model, data)`, a norm, such as a relative L2 error. Of a mean square, take the
        root.
    - `data_by_value`: the data at the source, and at two other values or more. Use the same initial
        fields for all values if you can, because different draws hide the difference.
    - `source`: the value that the model was pretrained at.
    - `coordinates`: names of coordinates (`"z"`, `"log"`, `"sqrt"`, `"1/z"`), or functions by name;
        by default all of these. A coordinate that is not finite at some value is left out, such as
        the logarithm of 0.

    **Raises:** `SelectionError` if `data_by_value` lacks the source or has less than two other
    values, if an error is not a number, or if no coordinate is left.
    """
    errors = {float(z): float(error(model, data)) for z, data in data_by_value.items()}
    # A key from an array of lower precision is the source, too.
    at_source = next(
        (errors.pop(z) for z in [*errors] if np.isclose(z, source, rtol=1e-6, atol=0)), None
    )
    if at_source is None or len(errors) < 2:
        raise SelectionError(
            f"`data_by_value` must hold data of the source {source} and of two other values or "
            f"more, but holds data of {', '.join(map(str, data_by_value)) or 'no value'}."
        )
    if not np.all(np.isfinite([at_source, *errors.values()])):
        raise SelectionError(
            f"`error` must give numbers, but gave {errors}, and {at_source} at the source {source}"
        )
    coordinates = tuple(COORDINATES) if coordinates is None else coordinates
    if isinstance(coordinates, Mapping):
        functions = dict(coordinates)
    else:
        functions = {name: coordinate_named(name).of for name in coordinates}
    rows: list[tuple[CoordinateRow, float]] = []
    for name, function in functions.items():
        u = np.array([float(function(jnp.asarray(z, float))) for z in (source, *errors)])
        u = np.abs(u[1:] - u[0])
        if np.all(np.isfinite(u) & (u > 0)):
            growth = np.sqrt(np.maximum(np.square([*errors.values()]) - at_source**2, 0)) / u
            spread = float(np.max(growth) / np.min(growth)) if np.all(growth) else float("inf")
            row = CoordinateRow(name, tuple(growth.tolist()), spread)
            rows.append((row, float(f"{np.max(u):.6g}")))
    if not rows:
        raise SelectionError(
            f"None of the coordinates {', '.join(functions)} is finite, and different, at the "
            f"source {source} and at {list(errors)}."
        )
    rows.sort(key=lambda row: row[0].spread)
    best, unit = rows[0]
    if not np.isfinite(best.spread):
        warn(
            "`choose_coordinate` can recommend no coordinate: at some value, the error is not above"
            f" the source's ({at_source:.3g}). Its basis is the number itself. Give more data."
        )
    if isinstance(coordinates, Mapping):
        function = functions[best.coordinate]
        basis: Basis = Function(lambda z: function(z) / unit, source)
    else:
        basis = Powers(source, unit, coordinate=best.coordinate)
    return CoordinateReport(tuple(row for row, _ in rows), tuple(errors), basis)
