"""The cost of the dispatcher on models of thousands of small layers. Serves ours and jNO."""

import importlib
from typing import Any

import equinox as eqx
import jax

from ._models import many_layers
from ._timing import Subject, timed


def build(case: dict[str, Any], device: str) -> Subject:
    """Apply, filter and merge. The adapted model is made when it is first asked for.

    So the first call of `apply` in a fresh process is the first one that the library sees.
    """
    lora = importlib.import_module("jno.lora")
    queue, layers = device == "gpu", case["layers"]
    plain, rank, key = many_layers(layers, case["width"]), case["rank"], jax.random.key(1)
    made: list[Any] = []

    def apply() -> Any:
        return lora.apply_lora(plain, rank, float(rank), key=key)

    def adapted() -> Any:
        if not made:
            made.append(apply())
        return made[0]

    def arrays(model: Any) -> list[jax.Array]:
        return [leaf for leaf in jax.tree.leaves(model) if eqx.is_array(leaf)]

    def eager_merge() -> list[jax.Array]:
        return arrays(lora.merge_lora(adapted()))

    def jitted_merge() -> list[jax.Array]:
        if len(made) < 2:
            values, static = eqx.partition(adapted(), eqx.is_array)
            leaves, form = jax.tree.flatten(values)

            def merge(leaves: list[jax.Array]) -> list[jax.Array]:
                model = eqx.combine(jax.tree.unflatten(form, leaves), static)
                return arrays(lora.merge_lora(model))

            made.append((jax.jit(merge), leaves))
        merge, leaves = made[1]
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
