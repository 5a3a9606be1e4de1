"""`MatrixAdapter`: adapters that update matrices of their layer, and `Composite`s of adapters."""

import abc
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, Inexact, PyTree

from .._errors import WrapperError
from .statistics import Statistic
from .wrapper import LoRAWrapper, overrides


class Term(NamedTuple):
    """One adapter of a weighted sum: `state()` of one layer, rank and alpha, and the weight."""

    state: Mapping[str, Array]
    rank: Any
    alpha: Any
    weight: Any = 1.0


class LowRankForm(NamedTuple):
    """An adapter that changes its layer to `W' = diag(gain) (W + B A)` and `b' = b + shift`.

    `W` is the matrix before adapting, and `b` the bias.

    - `A`, `B`: `(k, in)` and `(out, k)`, with every scale. `k` may differ from the rank, and be 0.
    - `gain`, `shift`: `(out,)`; `None` for 1 and 0. A layer without a bias has no shift.
    """

    A: Array
    B: Array
    gain: Array | None = None
    shift: Array | None = None

    @property
    def is_product(self) -> bool:
        """Whether the adapter only adds `B A`."""
        return self.gain is None and self.shift is None


class MatrixAdapter(LoRAWrapper):
    """An adapter that updates one matrix of its layer, or several.

    All members are optional. Tools read them to collect statistics for starts, to move rank, to
    precondition gradients, and to combine, convert and compare updates.
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
    def matrix(cls, layer: PyTree) -> Array | None:
        """The `(out, in)` matrix of one plain `layer` that the adapter updates, if it is one."""
        return None

    @classmethod
    def matrices(cls, layer: PyTree) -> Mapping[str, Inexact[Array, "*modes out in"]]:
        """By name, the matrices of one plain `layer` that the adapter updates, if several.

        They may be complex, and have axes in front, such as the modes of a Fourier transform. Empty
        by default: see `matrix`.
        """
        return {}

    @classmethod
    def inputs_of(cls, layer: PyTree, *args: Any, **kwargs: Any) -> Float[Array, "n in"]:
        """The vectors that the matrix of one `layer` multiplies in this call, for `needs`.

        By default the first argument, whose last axis must be the matrix's `in`.
        """
        return _rows_of(args[0], eqx.filter_eval_shape(cls.matrix, layer).shape[1], "inputs")

    @classmethod
    def outputs_of(cls, layer: PyTree, y: Any) -> Float[Array, "n out"]:
        """The rows of the layer's output `y`, for `needs`: by default along its last axis."""
        return _rows_of(y, eqx.filter_eval_shape(cls.matrix, layer).shape[0], "outputs")

    @classmethod
    def low_rank_scale(cls, rank: Any, alpha: Any) -> float | None:
        """The factor `s` of an adapter whose whole effect is an update `s B A` of the matrix.

        Its `state()` then contains `lora_A` `(rank, in)` and `lora_B` `(out, rank)`, and perhaps
        `multiplier`, a frozen factor of the scale. `None` (the default) for other adapters.
        """
        return None

    def low_rank_form(self) -> LowRankForm | None:
        """The adapter as factors, gain and shift, if these are exactly what it does.

        Banks, sums, conversions and exports know an adapter by this form alone.
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
    return overrides(MatrixAdapter.of(cls), MatrixAdapter, "sum_of")


class Member(NamedTuple):
    """One adapter of a composite: its name, class, rank and alpha, and whether it trains."""

    name: str
    wrapper: type[LoRAWrapper]
    rank: int | None
    alpha: float | None
    trains: bool = False


class Composite(MatrixAdapter):
    """The base class of adapters that are made of other adapters, such as sums.

    A plugin registers a subclass without `members`, which applies to no layer, so that files can
    name it. Its `of_members` gives a direct subclass for each choice of members, whose adapters
    `from_state` and the plugin's own functions make: `lora` never calls the constructor.
    """

    members: ClassVar[tuple[Member, ...]] = ()

    @classmethod
    @abc.abstractmethod
    def of_members(cls, members: tuple[Member, ...], trains_weights: bool) -> type["Composite"]:
        """The class for these members. The same arguments always give the same class.

        - `trains_weights`: whether `adapter_fields` of the class names `weights`.
        """


def registered_class(cls: type[LoRAWrapper]) -> type[LoRAWrapper]:
    """The class that a plugin registers: of a composite with members, the class without."""
    return cls.__mro__[1] if issubclass(cls, Composite) and cls.members else cls


def _rows_of(values: Any, width: int, what: str) -> Array:
    """`values` as rows of this width. **Raises:** `WrapperError` if their last axis differs."""
    shape = jnp.shape(values)
    if not shape or shape[-1] != width:
        raise WrapperError(
            f"the {what} {shape} of a call are not vectors of the {width} {what} that the matrix "
            f"has. Define `{what}_of` for this kind of layer"
        )
    return jnp.reshape(jnp.asarray(values), (-1, width))
