"""Find the coordinate of a parameter in which adapters are linear, such as `z` or its logarithm."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jno.lora import SelectionError
from jno.lora.extending import Printed, table
from jno.lora.types import Table

from ._bases import COORDINATES, Basis, Function, Powers


@dataclasses.dataclass(frozen=True)
class CoordinateRow:
    """One coordinate `u`.

    - `growth`: `sqrt(e^2 - e_0^2) / |u|` for each value, where `e` is the error of the untouched
        model at this value, and `e_0` at the source.
    - `spread`: the largest growth over the smallest, which is 1 if the coordinate is right.
    """

    coordinate: str
    growth: tuple[float, ...]
    spread: float


@dataclasses.dataclass(frozen=True, repr=False)
class CoordinateReport(Printed[CoordinateRow]):
    """The coordinates, the smallest spread first. Prints as a table.

    - `values`: the values of the parameter.
    - `basis`: the basis of the first coordinate, of degree 1, whose unit is the distance to the
        farthest value.
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
        caption = "The coordinate with the smallest spread is the right one."
        if not np.isfinite(self.rows[0].spread):
            caption = (
                "At some value the error is not larger than at the source, so no coordinate can be "
                "recommended."
            )
        return table("Growth of the error by value", columns, cells, caption)


def choose_coordinate(
    model: Any,
    error: Callable[[Any, Any], Any],
    data_by_value: Mapping[float, Any],
    source: float,
    *,
    coordinates: Sequence[str] | Mapping[str, Callable[[Any], Any]] = tuple(COORDINATES),
) -> CoordinateReport:
    """Find the coordinate in which the error of the untouched model grows at a constant rate.

    This needs neither training nor test data. In the right coordinate `u`, the distance of the
    pretrained model from the solution is proportional to `|u|`, so that `sqrt(e^2 - e_0^2) / |u|`
    is the same for all values.

    ```python
    report = choose_coordinate(model, error, {0.1: data, 0.06: data_2, 0.03: data_3}, source=0.1)
    print(report)
    conditional = Conditional(net, report.basis)
    ```

    **Arguments:**

    - `model`: the pretrained model.
    - `error`: `error(model, data)`, a norm, such as a relative L2 error. Take the root of a mean
        square.
    - `data_by_value`: the data at the source, and at two other values or more. Use the same initial
        fields for all values if you can, because different draws hide the difference.
    - `source`: the value that the model was pretrained at.
    - `coordinates`: names of coordinates (`"z"`, `"log"`, `"sqrt"`, `"1/z"`), or functions by name.

    **Raises:** `SelectionError` if `data_by_value` does not contain the source and at least two
    other values, if an error is not a number, or if a coordinate is not finite at a value.
    """
    errors = {float(z): float(error(model, data)) for z, data in data_by_value.items()}
    at_source = errors.pop(float(source), None)
    if at_source is None or len(errors) < 2:
        raise SelectionError(
            f"`data_by_value` must hold data of the source {source} and of two other values or "
            f"more, but holds data of {', '.join(map(str, data_by_value)) or 'no value'}."
        )
    if not np.all(np.isfinite([at_source, *errors.values()])):
        raise SelectionError(
            f"`error` must give numbers, but gave {errors}, and {at_source} at the source {source}"
        )
    if isinstance(coordinates, Mapping):
        functions = dict(coordinates)
    else:
        functions = {name: COORDINATES[name].of for name in coordinates}
    rows: list[tuple[CoordinateRow, float]] = []
    for name, function in functions.items():
        start = function(jnp.asarray(source, float))
        u = np.array([float(function(jnp.asarray(z, float)) - start) for z in errors])
        if not np.all(np.isfinite(u) & (u != 0)):
            raise SelectionError(
                f"The coordinate {name!r} has no distances of {list(errors)} from the source "
                f"{source}, but {u.tolist()}. Give `coordinates=` without it."
            )
        growth = np.sqrt(np.maximum(np.square([*errors.values()]) - at_source**2, 0)) / np.abs(u)
        spread = float(np.max(growth) / np.min(growth)) if np.all(growth) else float("inf")
        rows.append((CoordinateRow(name, tuple(growth.tolist()), spread), float(np.max(np.abs(u)))))
    rows.sort(key=lambda row: row[0].spread)
    best, unit = rows[0]
    if isinstance(coordinates, Mapping):
        function = functions[best.coordinate]

        def scaled(z: Any) -> Array:
            return function(z) / unit

        basis: Basis = Function(scaled, source)
    else:
        basis = Powers(source, unit, coordinate=best.coordinate)
    return CoordinateReport(tuple(row for row, _ in rows), tuple(errors), basis)
