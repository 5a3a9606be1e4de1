"""The table that `Conditional.summary` returns."""

import dataclasses
from collections.abc import Mapping

import equinox as eqx
import jax
from jaxtyping import PyTree

from jno.lora import LoRAWrapper, Table, lora_report
from jno.lora.extending import Printed, adapted_layers, show_path, table

from ._bases import Basis
from ._moving import trained_fields


@dataclasses.dataclass(frozen=True)
class ConditionalRow:
    """One adapted layer.

    - `moving`: the fields that move with the parameter, and the scale and shift of `film`.
    - `shared`: the trained fields that are the same for all values of the parameter.
    - `trainable`: the number of trained parameters in directions and shared fields.
    """

    path: str
    layer: str
    wrapper: type[LoRAWrapper]
    moving: tuple[str, ...]
    shared: tuple[str, ...]
    trainable: int


@dataclasses.dataclass(frozen=True, repr=False)
class ConditionalReport(Printed[ConditionalRow]):
    """The adapted layers of a conditional, and totals.

    Prints as a table that joins rows which differ only in the indices of their paths; `rows` does
    not join them.

    - `moves`: the number of layers that move, and the basis, as text.
    - `trainable`: the number of trained parameters, including the basis.
    - `total`: the number of parameters of the whole model with its adapters, as in the summary of a
        `Net`, and of the directions and the basis.
    """

    rows: tuple[ConditionalRow, ...]
    moves: str
    trainable: int
    total: int

    @property
    def percentage(self) -> float:
        """`trainable` as a percentage of `total`."""
        return 100 * self.trainable / self.total

    @property
    def caption(self) -> str:
        """The totals in one line."""
        return (
            f"{self.moves}, {self.trainable:,} of {self.total:,} parameters train "
            f"({self.percentage:.2f} %)"
        )

    def __repr__(self) -> str:
        return f"ConditionalReport({self.caption})"

    def _table(self) -> Table:
        columns = [(name, "left") for name in ("path", "layer", "adapter", "moves", "for all z")]
        columns.append(("trainable", "right"))
        cells = (
            (
                show_path(row.path),
                row.layer,
                row.wrapper.__name__,
                ", ".join(row.moving),
                ", ".join(row.shared),
                f"{row.trainable:,}",
            )
            for row in self.rows
        )
        return table("Conditional", columns, cells, self.caption, by_path=True)


def report_on(conditional: PyTree, trainable: PyTree) -> ConditionalReport:
    """The report of a `Conditional`. `trainable` is its mask."""
    model, directions, basis = conditional.model, conditional.directions, conditional.basis
    rows: list[ConditionalRow] = []
    for path, adapter, mask in adapted_layers(model, trainable.model):
        moving, film = tuple(directions[path]), conditional.film.get(path)
        shared = tuple(name for name in trained_fields(adapter) if name not in moving)
        trained = _count((eqx.filter(adapter, mask), directions[path], film))
        layer = type(adapter.base).__name__
        moving += tuple(x for x in ("scale", "shift") if getattr(film, x, None) is not None)
        rows.append(ConditionalRow(path, layer, type(adapter), moving, shared, trained))
    beside = _count(eqx.filter(basis, trainable.basis))
    count = sum(row.trainable for row in rows) + beside
    total = lora_report(model).total + _count((directions, conditional.film)) + beside
    return ConditionalReport(tuple(rows), described(directions, basis), count, total)


def described(directions: Mapping[str, PyTree], basis: Basis) -> str:
    """`12 layers move by Powers(source=0.1, unit=0.06, degree=1)`."""
    fields = {name: getattr(basis, name, None) for name in ("nodes", "source", "unit", "degree")}
    shown = (f"{name}={value!r}" for name, value in fields.items() if value is not None)
    layers = "layer moves" if len(directions) == 1 else "layers move"
    return f"{len(directions)} {layers} by {type(basis).__name__}({', '.join(shown)})"


def _count(tree: PyTree) -> int:
    """The number of real numbers, so that a complex number counts twice."""
    arrays = (leaf for leaf in jax.tree.leaves(tree) if hasattr(leaf, "dtype"))
    return sum(leaf.size * (2 if leaf.dtype.kind == "c" else 1) for leaf in arrays)
