"""Low-rank updates with a factor `B` that is a weighted sum of several directions."""

import copy
from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

import jax.numpy as jnp
from equinox import AbstractVar
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from jno.lora import LoRAWrapper

from ._arrays import cast_like, in_compute_dtype, scaled
from ._layer_kind import Factor
from ._scaled import Scaled

T = TypeVar("T")


class Weighted(Scaled):
    """A method with an update `B A`, where `B` may be a weighted sum: `B = sum_k w_k B_k`.

    Constructors make adapters with a plain `B`. `with_directions` returns an adapter with the
    weights `w` `(K,)` and a field `lora_B` of shape `(K, out, r)`. The law gets `B` from
    `weighted`, and the forward pass computes `weighted_low_rank`, in which the weights multiply
    features of the rank axis, so that a map over the weights does not copy factors.
    """

    # Whether `law` and `forward` do so. A class or mixin that overrides either must set this again.
    takes_weights: ClassVar[bool] = False

    lora_A: AbstractVar[Array]
    lora_B: AbstractVar[Array]
    direction_weights: Float[Array, " K"] | None

    def __init_subclass__(cls, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        bases = [next(b for b in cls.__mro__ if name in vars(b)) for name in ("law", "forward")]
        cls.takes_weights = all(vars(base).get("takes_weights", False) for base in bases)

    def _initial_fields(
        self, *start: Any, multiplier: Any = None, **options: Any
    ) -> dict[str, Any]:
        fields = super()._initial_fields(*start, multiplier=multiplier, **options)
        return {**fields, "direction_weights": None}

    def with_directions(
        self, directions: Mapping[str, Any], weights: Float[Array, " K"]
    ) -> LoRAWrapper | None:
        """`None` without directions for `lora_B`. All other fields are vectors, and become sums."""
        if "lora_B" not in directions or not self.takes_weights:
            return None
        fields = {
            name: d if name == "lora_B" else weighted_sum(d, weights)
            for name, d in directions.items()
        }
        return with_attributes(self, {**fields, "direction_weights": weights})

    def weighted(self, B: Array) -> Factor:
        """The factor `B` of the law, for the field `lora_B`."""
        return B if self.direction_weights is None else weighted_sum(B, self.direction_weights)

    def weighted_low_rank(
        self,
        x: ArrayLike,
        weights: Float[Array, " K"],
        B: Float[Array, "K out r"],
        seen: ArrayLike | None,
    ) -> Array:
        """`W x + sum_k w_k s B_k A seen`: one product with all `B_k` side by side."""
        K, outputs, r = B.shape
        side_by_side = jnp.moveaxis(B, 0, 1).reshape(outputs, K * r)
        weight_of_each = self.scaling * jnp.repeat(in_compute_dtype(weights), r)

        def weighted_features(h: Float[Array, "r *rest"]) -> Float[Array, "Kr *rest"]:
            return scaled(jnp.concatenate([h] * K), weight_of_each)

        # With `seen`, kinds do not add the update to their weight, which a map over weights would
        # copy.
        seen = x if seen is None else seen
        return self.low_rank(x, self.lora_A, side_by_side, between=weighted_features, seen=seen)

    def state(self) -> dict[str, Array]:
        """The arrays, with the directions replaced by their sum."""
        if self.direction_weights is None:
            return super().state()
        fields = {"lora_B": self.weighted(self.lora_B), "direction_weights": None}
        return with_attributes(self, fields).state()


def weighted_sum(d: Float[Array, "K *shape"], weights: Float[Array, " K"]) -> Array:
    """`sum_k w_k d_k`, computed in float32 at least, in the dtype of `d`."""
    wide = in_compute_dtype(d)
    return cast_like(jnp.tensordot(weights.astype(wide.dtype), wide, 1), d)


def with_attributes(module: T, values: Mapping[str, object]) -> T:
    """A copy of an Equinox module with some fields replaced."""
    changed = copy.copy(module)
    for name, value in values.items():
        object.__setattr__(changed, name, value)
    return changed
