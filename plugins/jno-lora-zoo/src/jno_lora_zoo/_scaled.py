"""Methods that add an update to the weight, with a scale that depends on `alpha` and the rank."""

import abc
import functools
from collections.abc import Mapping
from typing import Any, ClassVar

import equinox as eqx
import jax.numpy as jnp
from jax.tree_util import Partial
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from ._arrays import Matrix, in_compute_dtype
from ._layer_kind import Update
from ._method import Method


class Scaled(Method):
    """A method whose update is multiplied by a static number computed from `alpha` and the rank.

    With the option `multiplier`, the update is also multiplied by a frozen scalar array, which can
    differ between models without recompilation, and can be mapped over.
    """

    # Whether the factor `s` of the update is `alpha`, which then defaults to 1.
    _scales_by_alpha: ClassVar[bool] = False

    multiplier: Float[Array, ""] | None

    def _initial_fields(
        self, *start: Any, multiplier: Any = None, **options: Any
    ) -> dict[str, Any]:
        return {**self.start(*start, **options), "multiplier": as_multiplier(multiplier)}

    @classmethod
    def default_alpha(cls, rank: int) -> float:
        return 1.0 if cls._scales_by_alpha else super().default_alpha(rank)

    @classmethod
    def scale_for(cls, rank: int, alpha: float) -> float:
        """The factor `s` of the update, for the effective rank: linear in `alpha`, or always 1."""
        if not cls.has_alpha:
            return 1.0
        return alpha if cls._scales_by_alpha else alpha / rank

    @property
    def scaling(self) -> float:
        """The factor `s` of the update."""
        return self.scale_for(self.rank, self.alpha)

    def times_scale(self, factor: Array) -> Array:
        """`s` times the multiplier, if any, times `factor`, in at least float32 for precision."""
        return self.scaling * in_compute_dtype(self.multiplied(factor))

    def multiplied(self, factor: Array) -> Array:
        """`factor` times the multiplier, if any."""
        if self.multiplier is None:
            return factor
        factor = in_compute_dtype(factor)
        return factor * self.multiplier.astype(factor.dtype)

    @classmethod
    def options_of(cls, state: Mapping[str, Array]) -> dict[str, Any]:
        options = super().options_of(state)
        return {**options, "multiplier": 1.0} if "multiplier" in state else options


class Additive(Scaled):
    """`W' = W + U`, for an update `U` that is not a product of two factors.

    A subclass defines `update`, and `times` or `column` if they cost less than `U`. Both get the
    shape of `W`.
    """

    @abc.abstractmethod
    def update(self, W: Matrix) -> Matrix:
        """`U`, with its scale, in the dtype of `W`."""

    def times(self, shape: tuple[int, ...], v: Float[Array, " in"]) -> Float[Array, " out"]:
        """`U v` for features `v`, in their dtype."""
        raise NotImplementedError

    def column(self, shape: tuple[int, ...], i: Array) -> Float[Array, " out"]:
        """`U[:, i]`."""
        raise NotImplementedError

    def matrix_is_cheaper(self, shape: tuple[int, ...]) -> bool:
        """Whether `U` costs less than `times`, for a matrix `W` of this shape."""
        return type(self).times is Additive.times

    def own_update(self) -> Matrix:
        """`U` for the matrix of `base`."""
        return self.update(self.matrix(self.base))

    def law(self, W: Matrix) -> Matrix:
        return W + self.update(W)

    def forward(self, x: ArrayLike) -> Array:
        # Only the shape, because the matrix may be another array, such as the weight's transpose.
        shape = eqx.filter_eval_shape(self.matrix, self.base).shape
        by_column = type(self).column is not Additive.column
        update = Update(
            Partial(type(self).own_update, self),
            None if self.matrix_is_cheaper(shape) else functools.partial(self.times, shape),
            functools.partial(self.column, shape) if by_column else None,
        )
        return self.plus(x, update)


def as_multiplier(value: Any) -> Float[Array, ""] | None:
    """The field for the option. **Raises:** `ValueError` unless it is one number or `None`."""
    if value is None:
        return None
    try:
        # A copy, as it is a leaf of each layer, and a buffer in two leaves cannot be donated.
        array = jnp.copy(jnp.asarray(value)).astype(jnp.float32)
    except (TypeError, ValueError):  # not a number
        array = None
    if array is None or array.shape != () or jnp.iscomplexobj(value):
        raise ValueError(f"`multiplier` must be one real number, but is {value!r}")
    return array
