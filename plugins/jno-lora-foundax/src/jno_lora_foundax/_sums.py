"""Weighted sums of adapters whose updates are sums over directions."""

from collections.abc import Callable, Mapping, Sequence

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array

from jno.lora import Term
from jno.lora.extending import widest
from jno_lora_zoo import in_compute_dtype


def summed(terms: Sequence[Term], axes: Mapping[str, int], scaled: str, rank: int | None) -> Term:
    """The sum of `terms`, whose directions add up, with at least the rank `rank`.

    - `axes`, `scaled`: as in `joined`. An update is `alpha / rank` times the field `scaled`.
    """

    def factor(term: Term, _: str) -> ArrayLike:
        return term.weight * term.alpha / term.rank

    total = sum(term.rank for term in terms)
    most = max(total, rank or 0)
    state = joined(terms, axes, scaled, factor, more=most - total)
    return Term(narrowed(state, terms), most, float(most))


def joined(
    terms: Sequence[Term],
    axes: Mapping[str, int],
    scaled: str,
    factor: Callable[[Term, str], ArrayLike],
    more: int = 0,
) -> dict[str, Array]:
    """The states of `terms` with the directions of all terms side by side.

    All arrays are in float32 at least: see `narrowed`.

    - `axes`: by field, the axis of directions of its arrays, counted from the end.
    - `scaled`, `factor`: each array of the field `scaled` is multiplied by `factor(term, name)`.
    - `more`: how many directions of zeros to append.

    **Raises:** `ValueError` if the terms have arrays of different names, as with different bands.
    """
    names = list(terms[0].state)
    in_any = {name for term in terms for name in term.state}
    if strangers := in_any.difference(set(names).intersection(*(term.state for term in terms))):
        raise ValueError(
            f"their arrays differ: {', '.join(sorted(strangers))} are not in all of them. Only "
            "adapters with the same options, such as `bands`, have a sum"
        )
    state: dict[str, Array] = {}
    for name in names:
        field = name.partition("/")[0]
        # Half precision would round the factor itself.
        arrays = [in_compute_dtype(term.state[name]) for term in terms]
        if field == scaled:
            arrays = [times(x, factor(t, name)) for x, t in zip(arrays, terms, strict=True)]
        dtype = widest(array.dtype for array in arrays)
        arrays = [array.astype(dtype) for array in arrays]
        widths = [(0, 0)] * arrays[0].ndim
        widths[axes[field]] = (0, max(more, 0))
        state[name] = jnp.pad(jnp.concatenate(arrays, axis=axes[field]), widths)
    return state


def narrowed(state: Mapping[str, Array], terms: Sequence[Term]) -> dict[str, Array]:
    """The arrays of a sum in the widest dtype that the terms have for each of the arrays."""
    return {
        name: array.astype(widest(term.state[name].dtype for term in terms))
        for name, array in state.items()
    }


def times(array: Array, factor: ArrayLike) -> Array:
    """`factor * array`, in float32 at least."""
    wide = in_compute_dtype(array)
    return wide * jnp.asarray(factor, wide.dtype)
