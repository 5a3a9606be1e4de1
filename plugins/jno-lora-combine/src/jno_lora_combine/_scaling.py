"""Scale the updates of a set, and add up adapters of one class."""

import dataclasses
from collections.abc import Mapping, Sequence

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array

from jno.lora import AdapterSet, LooseAdapter, MatrixAdapter, SelectionError, Term
from jno.lora.extending import adds_up, at_least_float32, check_number, over_stack, show_path

from ._checks import check_products


def scale_adapters(adapters: AdapterSet, factor: ArrayLike) -> AdapterSet:
    """`adapters` with every update multiplied by `factor` (for LoRA, in `lora_B`).

    **Arguments:**

    - `adapters`: a set of adapters that `combine` takes.
    - `factor`: one real number, which may be traced. 0 gives the base's outputs.

    **Raises:** `SelectionError` that lists all adapters that `combine` does not take.
    """
    if not isinstance(adapters, AdapterSet):
        raise SelectionError(
            f"scale_adapters takes an AdapterSet, but got a {type(adapters).__name__}. "
            "extract_adapters(model) takes a set from a model."
        )
    check_number("factor", factor)
    check_products([adapters], "scaled", sums=True)
    scaled = {path: weighted(path, adapters[path], factor) for path in adapters}
    return AdapterSet(scaled, adapters.shared)


def weighted(path: str, adapter: LooseAdapter, factor: ArrayLike) -> LooseAdapter:
    """An adapter that `combine` takes, times a number, or a number for each layer of a stack."""
    if adds_up(adapter.wrapper):
        return summed(path, [adapter], [factor])
    B = jnp.asarray(adapter.state["lora_B"])
    wide = at_least_float32(B)  # half precision would round the factor itself
    factor = jnp.asarray(factor, wide.dtype)
    B = (wide * (factor[..., None, None] if factor.ndim else factor)).astype(B.dtype)
    return dataclasses.replace(adapter, state={**adapter.state, "lora_B": B})


def summed(
    path: str, adapters: Sequence[LooseAdapter], weights: Sequence[ArrayLike]
) -> LooseAdapter:
    """The weighted sum of adapters of one class with a `sum_of`.

    A weight may have the axes of a stack.

    **Raises:** `SelectionError` that names the path, if these adapters have no sum.
    """
    first = adapters[0]

    def sum_of_layer(states: list[Mapping[str, Array]], weights: list[ArrayLike]) -> Term | None:
        triples = zip(states, adapters, weights, strict=True)
        terms = [Term(state, a.rank, a.alpha, weight) for state, a, weight in triples]
        return MatrixAdapter.of(first.wrapper).sum_of(terms)

    states, ndim = [adapter.state for adapter in adapters], first.layer.stack_ndim
    if ndim:
        stack = first.layer.arrays[0][1][:ndim]
        weights = [jnp.broadcast_to(jnp.asarray(weight), stack) for weight in weights]
    try:
        total = over_stack(sum_of_layer, ndim)(states, [*weights])
    except ValueError as err:
        message = f"Could not add up the adapters at {show_path(path)!r}: {err}"
        raise SelectionError(message) from err
    return dataclasses.replace(first, state=dict(total.state), rank=total.rank, alpha=total.alpha)
