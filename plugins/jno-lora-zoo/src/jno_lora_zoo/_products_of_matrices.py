"""Low-rank methods on layers with several matrices: sums of adapters, and conversions to them."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from jno.lora.types import Term

from ._arrays import in_compute_dtype
from ._one_matrix import by_matrix


def with_products(cls: Any, layer: Any, factors: Mapping[str, tuple[Array, Array]]) -> Any:
    """The adapter of class `cls` that adds `B A` to each matrix. See `LoRAWrapper`."""
    rank = next(iter(factors.values()))[0].shape[-2]
    state: dict[str, Array] = {}
    for name, (A, B) in factors.items():
        # A small matrix has no more directions than it needs.
        A, B = _with_directions(min(rank, A.shape[-1], B.shape[-2]), A, B)
        scale = cls.of_one_matrix.low_rank_scale(A.shape[-2], float(rank))
        state |= {f"lora_A/{name}": A, f"lora_B/{name}": B / scale}
    return cls.from_state(layer, state, rank, float(rank))


def sum_of(cls: Any, terms: Sequence[Term], rank: int | None = None) -> Term:
    """The weighted sum of adapters of class `cls`: for each matrix, the directions side by side."""
    total = max(sum(term.rank for term in terms), rank or 0)
    states = [by_matrix(term.state) for term in terms]
    if any(fields.keys() != {"lora_A", "lora_B"} for s in states for fields in s.values()):
        raise ValueError(
            "only factors have a sum, and an adapter among these also trains a bias. Train without "
            '`bias="train"`, or merge the adapters'
        )
    state: dict[str, Array] = {}
    for name in states[0]:
        pairs = [(s[name]["lora_A"], s[name]["lora_B"]) for s in states]
        scaled = [_scaled(cls, *pair, term) for pair, term in zip(pairs, terms, strict=True)]
        A = jnp.concatenate([in_compute_dtype(A) for A, _ in pairs], axis=-2)
        B = jnp.concatenate(scaled, axis=-1)
        # As many directions as an adapter of the total rank has for this matrix.
        A, B = _with_directions(min(total, B.shape[-2], A.shape[-1]), A, B)
        B = B / cls.of_one_matrix.low_rank_scale(A.shape[-2], float(total))
        state[f"lora_A/{name}"] = A.astype(_widest(A for A, _ in pairs))
        state[f"lora_B/{name}"] = B.astype(_widest(B for _, B in pairs))
    return Term(state, total, float(total))


def _scaled(cls: Any, A: Array, B: Array, term: Term) -> Array:
    wide = in_compute_dtype(B)
    scale = term.weight * cls.of_one_matrix.low_rank_scale(A.shape[-2], term.alpha)
    return wide * jnp.asarray(scale, wide.dtype)


def _with_directions(
    rank: int, A: Float[Array, "*modes k in"], B: Float[Array, "*modes out k"]
) -> tuple[Array, Array]:
    """Factors of the same product with `rank` directions, which are enough for it."""
    if A.shape[-2] <= rank:
        stack, zeros = [(0, 0)] * (A.ndim - 2), (0, rank - A.shape[-2])
        return jnp.pad(A, [*stack, zeros, (0, 0)]), jnp.pad(B, [*stack, (0, 0), zeros])
    product = B @ A
    identity = jnp.broadcast_to(jnp.eye(rank, dtype=A.dtype), (*A.shape[:-2], rank, rank))
    return (identity, product) if A.shape[-1] == rank else (product, identity)


def _widest(arrays: Any) -> Any:
    return max((array.dtype for array in arrays), key=lambda dtype: dtype.itemsize)
