"""The matrices that adapters update, before and after, and a row of a report about one of them."""

import dataclasses
from collections.abc import Callable
from typing import TypeVar

import equinox as eqx
import jax
from jaxtyping import Array, Inexact

from jno.lora import LoRAWrapper, MatrixAdapter, WrapperError
from jno.lora.extending import refusal_of_template, show_path, wide_layers

T = TypeVar("T")


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


def before_and_after(
    path: str, adapter: LoRAWrapper, read: Callable[[eqx.Module], T]
) -> tuple[T, T] | None:
    """`read` of the layer before adapting and of the merged layer, in float64.

    Half precision becomes float32. `None` for an adapter whose class refuses to merge.

    **Raises:** `WrapperError` that names the path, for a template, or if a merge raises otherwise.
    """
    place = f"the {type(adapter).__name__} at {show_path(path)!r}"
    if refusal := refusal_of_template(adapter, "Give the model itself."):
        raise WrapperError(f"Could not merge {place}: {refusal}")
    with jax.enable_x64(True):
        try:
            before, after = wide_layers(adapter)
        except WrapperError:
            return None
        except Exception as err:  # a merge may raise anything
            raise WrapperError(f"Could not merge {place}: {err!r}") from err
        return read(before), read(after)
