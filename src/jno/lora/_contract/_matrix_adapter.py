"""`MatrixAdapter`: adapters that update matrices of their layer."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
from jaxtyping import Array, Float, Inexact

from ._reading import rows_of
from ._statistics import Statistic
from ._wrapper import LoRAWrapper


class Term(NamedTuple):
    """One adapter of a weighted sum: `state()` of one layer, rank and alpha, and the weight."""

    state: Mapping[str, Array]
    rank: Any
    alpha: Any
    weight: Any = 1.0


class MatrixAdapter(LoRAWrapper):
    """An adapter that updates one matrix of its layer, or several.

    All members are optional. Tools read them to calibrate starts, to move rank, to precondition
    gradients, and to combine, convert and compare updates.
    """

    # Statistics of data that the start depends on, by name ("input_covariance", "input_mean",
    # "output_covariance", "gradient") or as classes. The constructor gets them as `statistics=`, a
    # dict by name, of one layer. They may be zero or of low rank.
    needs: ClassVar[tuple[str | type[Statistic], ...]] = ()
    # For controllers of rank: the trained field, `(r,)` in one layer, whose zeros switch directions
    # off; and for other trained fields the axis of one layer's array along which directions lie.
    # The fields may be dicts with such an array for each of several matrices.
    rank_gate: ClassVar[str | None] = None
    rank_axes: ClassVar[Mapping[str, int]] = {}
    # Which fields are factors of a low-rank product `B A`: "input" for `A` `(..., r, in)`, "output"
    # for `B` `(..., out, r)`, or dicts of arrays. The first input belongs to the first output, and
    # so on. Fields that the class lacks are ignored. For optimisers.
    factor_sides: ClassVar[Mapping[str, str]] = {"lora_A": "input", "lora_B": "output"}

    @staticmethod
    def of(wrapper: type[LoRAWrapper]) -> "type[MatrixAdapter]":
        """`wrapper`, or for another class `MatrixAdapter`, with the defaults of these members."""
        return wrapper if issubclass(wrapper, MatrixAdapter) else MatrixAdapter

    @classmethod
    def matrix(cls, layer: Any) -> Array | None:
        """The `(out, in)` matrix of one plain `layer` that the adapter updates, if it is one."""
        return None

    @classmethod
    def matrices(cls, layer: Any) -> Mapping[str, Inexact[Array, "*modes out in"]]:
        """By name, the matrices of one plain `layer` that the adapter updates, if several.

        They may be complex, and have axes in front, such as the modes of a Fourier transform. Empty
        by default: see `matrix`.
        """
        return {}

    @classmethod
    def inputs_of(cls, layer: Any, *args: Any, **kwargs: Any) -> Float[Array, "n in"]:
        """The vectors that the matrix of one `layer` multiplies in this call, for `needs`.

        By default the first argument, whose last axis must be the matrix's `in`.
        """
        return rows_of(args[0], eqx.filter_eval_shape(cls.matrix, layer).shape[1], "inputs")

    @classmethod
    def outputs_of(cls, layer: Any, y: Any) -> Float[Array, "n out"]:
        """The rows of the layer's output `y`, for `needs`: by default along its last axis."""
        return rows_of(y, eqx.filter_eval_shape(cls.matrix, layer).shape[0], "outputs")

    @classmethod
    def low_rank_scale(cls, rank: Any, alpha: Any) -> float | None:
        """The factor `s` of an adapter whose whole effect is an update `s B A` of the matrix.

        Its `state()` then contains `lora_A` `(rank, in)` and `lora_B` `(out, rank)`, and perhaps
        `multiplier`, a frozen factor of the scale. `None` (the default) for other adapters.
        """
        return None

    def low_rank_update(self) -> tuple[Array, Array] | None:
        """`(A, B)`, `(k, in)` and `(out, k)`, if the update of the matrix is exactly `B A`.

        For export as plain LoRA. `k` may be larger than `rank`.
        """
        return None

    @classmethod
    def with_products(cls, layer: Any, factors: Mapping[str, tuple[Array, Array]]) -> Any:
        """The adapter that adds `B A` to each of the `matrices` of a plain `layer`.

        `None` (the default) for adapters that are not plain LoRA of several matrices.

        - `factors`: by name, `A` `(*modes, r, in)` and `B` `(*modes, out, r)`, with one `r`.
        """
        return None

    @classmethod
    def sum_of(cls, terms: Sequence[Term], rank: int | None = None) -> Term | None:
        """The adapter that changes a layer by `sum_i w_i change_i`, exactly, with the weight 1.

        `None` (the default) if the changes of this class do not add up. A state of zeros must
        change nothing.

        - `terms`: adapters of this class for one layer. Arrays and weights may be traced.
        - `rank`: the least rank of the result. A bank requires adapters of one rank.

        **Raises:** `ValueError`, with the reason, if these states have no sum.
        """
        return None

    def with_directions(self, directions: Mapping[str, Any], weights: Float[Array, " K"]) -> Any:
        """This adapter with each of these fields at `sum_k weights[k] directions[field][k]`.

        Directions and weights stay separate, so that a map over `weights` copies no direction.
        `None` (the default) if the adapter or a field does not support this; then the caller sets
        the fields to the sums. For conditional adapters, with a parameter for each example of a
        batch.

        The fields of `self` are zero. `state()` of the result contains the sums, so that it is a
        state of the same class. Derivatives in `weights` must be exact.

        - `directions`: by field, arrays `(K, *shape)` for a field of one layer with that shape.
        - `weights`: may be traced, and mapped over.
        """
        return None


def adds_up(cls: type[LoRAWrapper]) -> bool:
    """Whether a class of adapters defines `sum_of`."""
    function: Any = MatrixAdapter.of(cls).sum_of
    default: Any = MatrixAdapter.sum_of
    return function.__func__ is not default.__func__
