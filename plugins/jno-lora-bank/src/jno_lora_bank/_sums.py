"""Replace sums of several adapters by one adapter, which fits a slot."""

import contextlib

from jaxtyping import PyTree

from jno.lora import AdapterSet, SelectionError, swap_adapters
from jno.lora.extending import members_of
from jno_lora_combine import combine

from ._values import fits


def with_joined_sums(model: PyTree, adapters: AdapterSet) -> AdapterSet:
    """The set, where each sum that `combine` takes is replaced by one adapter of a member's class.

    **Raises:** `SelectionError` if the set does not fit the model.
    """
    if not fits(model, adapters):
        swap_adapters(model, adapters)  # raises an error with the reason
    joined = dict(adapters.adapters)
    for path, adapter in adapters.adapters.items():
        if members_of(adapter.wrapper):
            # A sum of other adapters may still have a `low_rank_form`.
            with contextlib.suppress(SelectionError):
                joined[path] = combine([AdapterSet({path: adapter})], [1.0], "cat")[path]
    return AdapterSet(joined, adapters.shared)
