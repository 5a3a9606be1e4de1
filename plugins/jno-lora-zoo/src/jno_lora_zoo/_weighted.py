"""Low-rank updates with a weight for each of several directions: `with_directions`."""

import copy
from collections.abc import Mapping
from typing import Any, TypeVar

import jax.numpy as jnp
from jaxtyping import Array, Float

from jno.lora import LoRAWrapper

from ._arrays import cast_like, in_compute_dtype, scaled
from ._scaled import Scaled

T = TypeVar("T")


class Weighted(Scaled):
    """A method whose `B` may be a weighted sum of `K` factors: `B = sum_k w_k B_k`.

    The factors lie side by side in `lora_B`, below `K` copies of `A`. The weights multiply the
    features of the rank axis, so that a map over them copies no factor. Adapters of a constructor
    have no weights.
    """

    direction_weights: Float[Array, " K"] | None

    def _initial_fields(
        self, *start: Any, multiplier: Any = None, **options: Any
    ) -> dict[str, Any]:
        fields = super()._initial_fields(*start, multiplier=multiplier, **options)
        return {**fields, "direction_weights": None}

    def with_directions(
        self, directions: Mapping[str, Array], weights: Float[Array, " K"]
    ) -> LoRAWrapper | None:
        """Directions of `lora_B` side by side; other fields are sums.

        `None` without `lora_B`, and if the layer clamps the rank `K r`, which no state holds then.
        """
        if "lora_B" not in directions or self.direction_weights is not None:
            return None
        joined = _side_by_side(self, directions["lora_B"])
        if joined is None:
            return None
        sums = {
            name: cast_like(jnp.tensordot(_in_dtype_of(d, weights), in_compute_dtype(d), 1), d)
            for name, d in directions.items()
            if name != "lora_B"
        }
        return with_attributes(self, {**joined, **sums, "direction_weights": weights})

    def one_A(self) -> Float[Array, "r in"]:
        """`A`, once for all factors `B_k`."""
        A: Any = getattr(self, "lora_A")  # noqa: B009
        return A if self.direction_weights is None else A[: len(A) // len(self.direction_weights)]

    def times_weights(self, h: Float[Array, "r *rest"]) -> Float[Array, "R *rest"]:
        """`s w_1 h, s w_2 h, ...`, for features `h` of the rank axis of `one_A`."""
        assert self.direction_weights is not None
        repeated = jnp.tile(h, (len(self.direction_weights), *(1,) * (h.ndim - 1)))
        return scaled(repeated, self.scaling * self.weight_of_each())

    def weighted(self, B: Float[Array, "out r"]) -> Float[Array, "out r"]:
        """`B`, each column with its direction's weight, if there are weights."""
        if self.direction_weights is None:
            return B
        return scaled(in_compute_dtype(B).T, self.weight_of_each()).T

    def weight_of_each(self) -> Float[Array, " r"]:
        """The weight of each column of `B`, in float32 at least."""
        assert self.direction_weights is not None
        weights = in_compute_dtype(self.direction_weights)
        return jnp.repeat(weights, self.rank // len(weights))

    def state(self) -> dict[str, Any]:
        if self.direction_weights is None:
            return super().state()
        B: Any = getattr(self, "lora_B")  # noqa: B009
        sums = {"lora_B": cast_like(self.weighted(B), B), "direction_weights": None}
        return with_attributes(self, sums).state()


def with_attributes(module: T, values: Mapping[str, Any]) -> T:
    """A copy of an Equinox module with other attributes, static attributes as well."""
    changed = copy.copy(module)
    for name, value in values.items():
        object.__setattr__(changed, name, value)
    return changed


def _in_dtype_of(d: Array, weights: Array) -> Array:
    return weights.astype(in_compute_dtype(d).dtype)


def _side_by_side(adapter: Any, B: Float[Array, "K out r"]) -> dict[str, Any] | None:
    """The attributes of `adapter` with `[B_1, B_2, ...]`. `alpha` keeps the scale of the update."""
    blocks, outputs, r = B.shape
    if blocks == 1:
        return {"lora_B": B[0]}
    A, rank = adapter.lora_A, blocks * adapter.rank
    if adapter.effective_rank(rank, outputs, A.shape[1]) != rank:
        return None
    return {
        "lora_A": jnp.tile(A, (blocks, 1)),
        "lora_B": jnp.moveaxis(B, 0, 1).reshape(outputs, blocks * r),
        "rank": rank,
        "alpha": adapter.alpha * adapter.scale_for(r, 1.0) / adapter.scale_for(rank, 1.0),
    }
