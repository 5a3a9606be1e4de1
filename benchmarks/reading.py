"""Models that read weights: a step by `through`, by merging, and by layers that are called.

    python -m benchmarks.reading [--quick]

* **tied**: a table of embeddings that is also the output head, in bfloat16.
* **experts**: three products by `ragged_dot` with the weights of experts, in bfloat16.

The sides: **through**; **merged**, the same adapters without it; **full** fine-tuning; and
**floor**, LoRA on the dense layer alone, with the read weights frozen. Ratios of seconds are
formed within a round, in which every side has its turn in random order; the table shows medians
and quartiles. Memory is the temporary memory that XLA plans for the compiled step.
"""

import argparse
import random
import time
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr

from jno.lora import apply_lora, lora_trainable_filter
from jno_lora_arrays import through

from ._ratios import per_round

VARIANTS = ("lora", "dora", "vera", "auto")


class Tied(eqx.Module):
    """An embedding, one dense layer, and the embedding again as the head."""

    table: eqx.nn.Embedding
    dense: eqx.nn.Linear

    def __init__(self, words: int, size: int, key: Any):
        keys = jr.split(key)
        self.table = eqx.nn.Embedding(words, size, key=keys[0])
        self.dense = eqx.nn.Linear(size, size, key=keys[1])

    def __call__(self, ids: Any) -> Any:
        """The logits."""
        hidden = self.table.weight[ids]
        hidden = hidden + jax.nn.gelu(jax.vmap(self.dense)(hidden))
        return hidden @ self.table.weight.T


class Experts(eqx.Module):
    """A gated feed-forward block for each expert, and a dense layer in front of them."""

    dense: eqx.nn.Linear
    gate: eqx.nn.Linear
    up: eqx.nn.Linear
    down: eqx.nn.Linear
    experts: int = eqx.field(static=True)

    def __init__(self, experts: int, size: int, hidden: int, key: Any):
        keys = jr.split(key, 4)

        def stack(inputs: int, outputs: int, key: Any) -> Any:
            make = eqx.filter_vmap(lambda key: eqx.nn.Linear(inputs, outputs, False, key=key))
            return make(jr.split(key, experts))

        self.dense = eqx.nn.Linear(size, size, key=keys[0])
        self.gate, self.up = stack(size, hidden, keys[1]), stack(size, hidden, keys[2])
        self.down = stack(hidden, size, keys[3])
        self.experts = experts

    def __call__(self, x: Any) -> Any:
        """The outputs, an equal number of rows for each expert."""
        x = jax.vmap(self.dense)(x)
        sizes = jnp.full(self.experts, x.shape[0] // self.experts)
        gate = jax.lax.ragged_dot(x, self.gate.weight.transpose(0, 2, 1), sizes)
        up = jax.lax.ragged_dot(x, self.up.weight.transpose(0, 2, 1), sizes)
        hidden = jax.nn.silu(gate) * up
        return jax.lax.ragged_dot(hidden, self.down.weight.transpose(0, 2, 1), sizes)


def main() -> None:
    """Time both models with every variant and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="small shapes: does it run?")
    quick = parser.parse_args().quick
    words, size, tokens = (256, 32, 16) if quick else (32_768, 512, 256)
    keys = jr.split(jr.key(0), 4)
    ids = jr.randint(keys[2], (tokens,), 0, words)
    x = jr.normal(keys[3], (tokens, size), jnp.bfloat16)
    report("tied", Tied(words, size, keys[0]), ids, rounds=2 if quick else 7)
    hidden = 32 if quick else 1024
    report("experts", Experts(8, size, hidden, keys[1]), x, rounds=2 if quick else 7)


def report(name: str, model: Any, x: Any, rounds: int) -> None:
    """Print time and memory of a step of each side, in units of the floor."""
    model = jax.tree.map(lambda a: a.astype(jnp.bfloat16) if eqx.is_array(a) else a, model)
    call = lambda model, x: model(x)  # noqa: E731
    dense = apply_lora(model, 8, key=jr.key(1), target="dense", wrappers="LoRALinear")
    sides = {"floor": step(dense, call, x), "full": step(model, call, x, full=True)}
    for variant in VARIANTS:
        adapted = apply_lora(model, 8, key=jr.key(1), wrappers=variant)
        sides[f"{variant} merged"] = step(adapted, call, x)
        sides[f"{variant} through"] = step(adapted, through(call), x)
    seconds: list[dict[str, float]] = []
    for _ in range(rounds):
        order = random.sample(list(sides), len(sides))
        seconds.append({side: timed(sides[side][0]) for side in order})
    least = sides["floor"][1].temp_size_in_bytes
    print(f"{name}: time and temporary memory of a step over the floor's ({least / 2**20:.0f} MiB)")
    for side, (_, memory) in sides.items():
        if side != "floor":
            ratio = per_round(seconds, side)["floor"]
            quartiles = f"[{ratio['q1']:.2f}, {ratio['q3']:.2f}]"
            size = memory.temp_size_in_bytes / least
            print(f"  {side:14} time {ratio['median']:5.2f} {quartiles:14} memory {size:5.2f}")


def step(model: Any, function: Any, x: Any, full: bool = False) -> tuple[Callable[[], Any], Any]:
    """A call of the compiled gradient of the loss, and what its memory is."""
    selection = eqx.is_inexact_array if full else lora_trainable_filter(model)
    trainable, frozen = eqx.partition(model, selection)
    arrays, rest = eqx.partition(frozen, eqx.is_array)

    def loss(trainable: Any, arrays: Any, x: Any) -> Any:
        y = function(eqx.combine(trainable, arrays, rest), x).astype(jnp.float32)
        return jnp.mean(jax.nn.logsumexp(y, axis=-1) - y[:, 0])

    compiled = jax.jit(jax.grad(loss)).lower(trainable, arrays, x).compile()
    return lambda: jax.block_until_ready(compiled(trainable, arrays, x)), compiled.memory_analysis()


def timed(run: Callable[[], Any]) -> float:
    """The seconds of one call."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
