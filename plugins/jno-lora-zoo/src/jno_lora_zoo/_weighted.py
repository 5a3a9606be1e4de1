"""Low-rank updates with a weight for each of several directions: `with_directions`."""

import copy
from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

import jax.numpy as jnp
from jaxtyping import Array, Float

from jno.lora import LoRAWrapper

from ._arrays import cast_like, in_compute_dtype, scaled
from ._layer_kind import Factor
from ._scaled import Scaled

T = TypeVar("T")


class Weighted(Scaled):
    """A method whose `B` may be a weighted sum, `B = sum_k w_k B_k`, with one `A`.

    The field `lora_B` is then `(K, out, r)`. The weights multiply features of the rank axis, so
    that a map over them copies no factor. Adapters that a constructor makes have no weights.
    """

    # Whether `law` and `forward` of the class that sets this read `B` by `weighted`. A class that
    # writes a law or a forward pass of its own must say so again.
    takes_weights: ClassVar[bool] = False

    direction_weights: Float[Array, " K"] | None

    def _initial_fields(
        self, *start: Any, multiplier: Any = None, **options: Any
    ) -> dict[str, Any]:
        fields = super()._initial_fields(*start, multiplier=multiplier, **options)
        return {**fields, "direction_weights": None}

    def with_directions(
        self, directions: Mapping[str, Any], weights: Float[Array, " K"]
    ) -> LoRAWrapper | None:
        """`None` without directions of `lora_B`. Other fields, which are vectors, become sums."""
        if "lora_B" not in directions or not self._takes_weights():
            return None
        vectors = {name: d for name, d in directions.items() if name != "lora_B"}
        sums = {name: weighted_sum(d, weights) for name, d in vectors.items()}
        B = {"lora_B": directions["lora_B"], "direction_weights": weights}
        return with_attributes(self, sums | B)

    @classmethod
    def _takes_weights(cls) -> bool:
        authors = (
            next(base for base in cls.__mro__ if name in vars(base)) for name in ("law", "forward")
        )
        return all(vars(author).get("takes_weights", False) for author in authors)

    def weighted(self, B: Array) -> Factor:
        """The factor `B` of the law, for the field `lora_B`."""
        return B if self.direction_weights is None else weighted_sum(B, self.direction_weights)

    def weighted_low_rank(
        self, x: Any, weights: Float[Array, " K"], B: Float[Array, "K out r"], seen: Any
    ) -> Array:
        """`W x + sum_k w_k s B_k A seen`."""
        K, outputs, r = B.shape
        weight_of_each = self.scaling * jnp.repeat(in_compute_dtype(weights), r)

        def weighted_features(h: Float[Array, "r *rest"]) -> Float[Array, "Kr *rest"]:
            return scaled(jnp.concatenate([h] * K), weight_of_each)

        B = jnp.moveaxis(B, 0, 1).reshape(outputs, K * r)
        # With `seen`, no kind adds the update to its weight, which a map over weights would copy.
        seen = x if seen is None else seen
        return self.low_rank(x, getattr(self, "lora_A"), B, between=weighted_features, seen=seen)  # noqa: B009

    def state(self) -> dict[str, Any]:
        if self.direction_weights is None:
            return super().state()
        sums = {"lora_B": self.weighted(getattr(self, "lora_B")), "direction_weights": None}  # noqa: B009
        return with_attributes(self, sums).state()


def weighted_sum(d: Float[Array, "K *shape"], weights: Float[Array, " K"]) -> Array:
    """`sum_k w_k d_k`, computed in float32 at least, in the dtype of `d`."""
    wide = in_compute_dtype(d)
    return cast_like(jnp.tensordot(weights.astype(wide.dtype), wide, 1), d)


def with_attributes(module: T, values: Mapping[str, Any]) -> T:
    """A copy of an Equinox module with other values of some fields."""
    changed = copy.copy(module)
    for name, value in values.items():
        object.__setattr__(changed, name, value)
    return changed
