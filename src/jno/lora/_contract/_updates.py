"""Optional members of adapters that update several matrices, or whose changes add up."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jaxtyping import Array, Float, Inexact


class Term(NamedTuple):
    """One adapter of a weighted sum: `state()` of one layer, rank and alpha, and the weight."""

    state: Mapping[str, Array]
    rank: Any
    alpha: Any
    weight: Any = 1.0


class Updates:
    """Members of `LoRAWrapper` with defaults, for tools that combine, convert and compare."""

    @classmethod
    def matrices(cls, layer: Any) -> Mapping[str, Inexact[Array, "*modes out in"]]:
        """By name, the matrices of one plain `layer` that the adapter updates, if several.

        They may be complex, and have axes in front, such as the modes of a Fourier transform. By
        default none: see `matrix`.
        """
        return {}

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
        - `rank`: the least rank of the result. A bank holds adapters of one rank.

        **Raises:** `ValueError`, with the reason, if these states have no sum.
        """
        return None

    def with_directions(self, directions: Mapping[str, Any], weights: Float[Array, " K"]) -> Any:
        """This adapter with each of these fields at `sum_k weights[k] directions[field][k]`.

        It keeps directions and weights apart: a map over `weights` copies no direction. `None` (the
        default) for adapters and fields that cannot, whose fields the caller sets to the sums. For
        conditional adapters, with a parameter for each example of a batch.

        The fields of `self` are zero. `state()` of the result holds the sums, so that it is a state
        of the same class. Derivatives in `weights` must be exact.

        - `directions`: by field, arrays `(K, *shape)` for a field of one layer with that shape.
        - `weights`: may be traced, and mapped over.
        """
        return None


def adds_up(cls: type[Updates]) -> bool:
    """Whether a class of adapters defines `sum_of`."""
    function: Any = cls.sum_of
    default: Any = Updates.sum_of
    return function.__func__ is not default.__func__
