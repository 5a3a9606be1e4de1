"""Ways to give each example of a batch the low-rank product of its adapter.

    python -m benchmarks.slot_products [--quick]

The time of a linear layer with the update of one of 64 adapters of rank 16, over the layer alone,
for 256 examples in random order. docs/design.md says why only the last way was taken.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr

from jno.lora import apply_lora, extract_adapters
from jno_lora_bank import AdapterBank, at_slot

from .many_adapters import at_random, interleaved
from .reading import over


def copies(A: Any, B: Any, numbers: Any, xs: Any) -> Any:
    """A copy of the factors for each example, then products example by example."""
    return jax.vmap(lambda a, b, x: b @ (a @ x))(A[numbers], B[numbers], xs)


def fused_sum(A: Any, B: Any, numbers: Any, xs: Any) -> Any:
    """Sums, which XLA may fuse with the lookup."""
    h = jnp.sum(A[numbers] * xs[:, None], axis=2)
    return jnp.sum(B[numbers] * h[:, None], axis=2)


def masked(A: Any, B: Any, numbers: Any, xs: Any) -> Any:
    """Products with all adapters, with zeros for every adapter but the example's."""
    h = jnp.einsum("bk,srk->bsr", xs, A)
    is_own = numbers[:, None] == jnp.arange(len(A))
    return jnp.einsum("bsr,smr->bm", jnp.where(is_own[:, :, None], h, 0), B)


def ragged(A: Any, B: Any, numbers: Any, xs: Any) -> Any:
    """`ragged_dot` of the examples, sorted by adapter."""
    order, sizes = jnp.argsort(numbers), jnp.bincount(numbers, length=len(A)).astype(jnp.int32)
    y = jax.lax.ragged_dot(jax.lax.ragged_dot(xs[order], A.mT, sizes), B.mT, sizes)
    return jnp.zeros_like(y).at[order].set(y)


WAYS = {"copies": copies, "fused sum": fused_sum, "masked": masked, "ragged_dot": ragged}


def sides(size: int, count: int, batch: int, rank: int) -> dict[str, Callable[[], Any]]:
    """Functions that compute the batch."""
    layer = eqx.nn.Linear(size, size, use_bias=False, key=jr.key(0))
    numbers, xs = at_random(count, batch), jr.normal(jr.key(1), (batch, size))
    sets = []
    for seed in range(count):
        adapted = apply_lora(layer, rank, float(rank), key=jr.key(seed))
        adapted = eqx.tree_at(lambda m: m.lora_B, adapted, adapted.lora_A.T / rank)
        sets.append(extract_adapters(adapted))
    A, B = (jnp.stack([s.adapters[""].state[name] for s in sets]) for name in ("lora_A", "lora_B"))
    bank = AdapterBank(layer, sets).snapshot().model

    @eqx.filter_jit
    def computed(way: Any, layer: Any, *args: Any) -> Any:
        base = jax.vmap(layer)(xs)
        return base if way is None else base + way(*args)

    with_bank = eqx.filter_jit(
        lambda m, slots, xs: jax.vmap(lambda s, x: at_slot(m, s)(x))(slots, xs)
    )
    products: dict[str, Callable[[], Any]] = {
        name: lambda way=way: computed(way, layer, A, B, numbers, xs) for name, way in WAYS.items()
    }
    products["bank"] = lambda: with_bank(bank, numbers + 1, xs)
    for name, run in products.items():
        assert jnp.allclose(run(), products["bank"](), atol=1e-3), name
    return {"base": lambda: computed(None, layer), **products}


def main() -> None:
    """Measure all ways and print them."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="small shapes, to check that it runs")
    quick = parser.parse_args().quick
    programs = sides(*(32, 4, 8, 2) if quick else (1024, 64, 256, 16))
    seconds = interleaved(programs, time.process_time, 2 if quick else 15)
    for name in [*WAYS, "bank"]:
        print(f"| {name} | {over(seconds, name, 'base')} |")


if __name__ == "__main__":
    main()
