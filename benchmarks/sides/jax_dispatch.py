"""The cost of the dispatcher on models of thousands of small layers. Serves ours and jNO."""

import functools
import importlib
from typing import Any

import equinox as eqx
import jax

from ._models import many_layers
from ._timing import Subject, timed


def build(case: dict[str, Any], device: str) -> Subject:
    """Apply, filter and merge. The adapted model is made at its first use.

    So the first timed `apply` in a fresh process is the library's first call.
    """
    lora = importlib.import_module("jno.lora")
    queue, layers = device == "gpu", case["layers"]
    plain, rank, key = many_layers(layers, case["width"]), case["rank"], jax.random.key(1)

    def apply() -> Any:
        return lora.apply_lora(plain, rank, float(rank), key=key)

    adapted = functools.cache(apply)

    def arrays(model: Any) -> list[jax.Array]:
        return [leaf for leaf in jax.tree.leaves(model) if eqx.is_array(leaf)]

    def eager_merge() -> list[jax.Array]:
        return arrays(lora.merge_lora(adapted()))

    @functools.cache
    def compiled_merge() -> tuple[Any, list[jax.Array]]:
        values, static = eqx.partition(adapted(), eqx.is_array)
        leaves, form = jax.tree.flatten(values)

        def merge(leaves: list[jax.Array]) -> list[jax.Array]:
            model = eqx.combine(jax.tree.unflatten(form, leaves), static)
            return arrays(lora.merge_lora(model))

        return jax.jit(merge), leaves

    def jitted_merge() -> list[jax.Array]:
        merge, leaves = compiled_merge()
        return merge(leaves)

    def host(call: Any) -> Any:
        return timed(call, lambda _: None, queue=False)

    return Subject(
        {"layers": layers},
        {
            "apply": timed(lambda: arrays(apply()), jax.block_until_ready, queue=queue),
            "filter": host(lambda: lora.lora_trainable_filter(adapted())),
            "merge": timed(eager_merge, jax.block_until_ready, queue=queue),
            "merge jitted": timed(jitted_merge, jax.block_until_ready, queue=queue),
        },
    )
