"""The matrices that adapters update, and a row of a report about one of them."""

import dataclasses

import equinox as eqx
from jaxtyping import Array, Inexact

from jno.lora import LoRAWrapper, MatrixAdapter


@dataclasses.dataclass(frozen=True)
class MatrixRow:
    """One matrix of an adapted layer, or of one slice of a stack. `label` names it."""

    path: str
    array: str
    part: tuple[int, ...]
    wrapper: type[LoRAWrapper]
    shape: tuple[int, int]

    @property
    def label(self) -> str:
        """`encoder/layers/0/weight`, and `blocks/up/weight[3]` of a stack."""
        part = f"[{','.join(map(str, self.part))}]" if self.part else ""
        return "/".join(filter(None, (self.path, self.array))) + part

    def _first_cells(self) -> tuple[str, str, str]:
        """The first cells of the row in a table: matrix, adapter and shape."""
        outputs, inputs = self.shape
        return self.label, self.wrapper.__name__, f"{outputs:,} x {inputs:,}"


def matrices_of(
    cls: type[MatrixAdapter], layer: eqx.Module
) -> dict[str, Inexact[Array, "*modes out in"]]:
    """The matrices of one plain `layer` that `cls` updates, by name; a single matrix is `""`.

    Empty if `cls` does not tell.
    """
    if several := cls.matrices(layer):
        return dict(several)
    matrix = cls.matrix(layer)
    return {} if matrix is None else {"": matrix}
