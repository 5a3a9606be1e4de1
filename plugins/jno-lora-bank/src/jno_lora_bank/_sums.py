"""Replace each sum of several adapters by one adapter, which fits a slot."""

import dataclasses
from collections.abc import Mapping

import jax.numpy as jnp
from jaxtyping import PyTree

from jno.lora import AdapterSet, LooseAdapter, swap_adapters
from jno.lora.extending import adds_up, members_of
from jno_lora_combine import combine, split_adapters

from ._values import fits, has_factors, refuse


def with_joined_sums(model: PyTree, adapters: AdapterSet) -> AdapterSet:
    """The set, where each sum of several adapters is replaced by one adapter.

    **Raises:** `SelectionError` if the set does not fit the model, or if the members of a sum are
    neither products (a trained bias is allowed) nor adapters of one class with a `sum_of`.
    """
    if not fits(model, adapters):
        swap_adapters(model, adapters)  # raises an error with the reason
    sums = {p: a for p, a in adapters.adapters.items() if members_of(a.wrapper)}
    members = {path: split_adapters(AdapterSet({path: sums[path]})) for path in sums}
    misfits: dict[str, str] = {}
    for path, sets in members.items():
        parts = [adapters_of_name[path] for adapters_of_name in sets.values()]
        further = {part.wrapper for part in parts if not has_factors(part)}
        has_one_class = len({part.wrapper for part in parts}) == 1
        if further and not (has_one_class and all(map(adds_up, further))):
            names = ", ".join(sorted(cls.__name__ for cls in further))
            misfits[path] = f"whose {names} does not add up with its other members"
    refuse(model, adapters, misfits)
    joined = {path: _joined(path, adapter, members[path]) for path, adapter in sums.items()}
    return AdapterSet({**adapters.adapters, **joined}, adapters.shared)


def _joined(path: str, adapter: LooseAdapter, sets: Mapping[str, AdapterSet]) -> LooseAdapter:
    """One adapter with the update of a sum and the sum of the trained biases."""
    state = {key: x for key, x in adapter.state.items() if not key.endswith("/bias_update")}
    joined = combine([AdapterSet({path: dataclasses.replace(adapter, state=state)})], [1.0], "cat")
    weights = jnp.moveaxis(jnp.asarray(adapter.state["weights"]), -1, 0)
    shifts = [
        weight[..., None] * jnp.asarray(member[path].state["bias_update"], weight.dtype)
        for weight, member in zip(weights, sets.values(), strict=True)
        if "bias_update" in member[path].state
    ]
    bias = {"bias_update": sum(shifts[1:], shifts[0])} if shifts else {}
    return dataclasses.replace(joined[path], state={**joined[path].state, **bias})
