"""Transformers in bfloat16: the cost of adapters that a model reads, calls and differentiates.

    python -m benchmarks.reading [--quick]

* **tied**: a step of a model whose table of embeddings is also its output head.
* **experts**: a step of a model with three products by `ragged_dot` with the weights of experts.
* **one token**: the forward pass of a transformer's block, as in decoding, also in float32.
* **kept**: the activations that such a block saves for the backward pass.

The sides of the steps: **through**; **merged**, the same adapters without `through`; **full**
fine-tuning; and **floor**, LoRA on the dense layer alone, with the read weights frozen. Time is the
processor's, of all threads, because other programs may run meanwhile. Its ratios are formed within
a round, in which every side has its turn in random order; the table shows medians and quartiles.
Memory is the temporary memory that XLA plans for the compiled step. `before` is the figure of an
early trial on the same table of embeddings; the sizes of the trial's other models are not known.
"""

import argparse
import random
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr

from jno.lora import apply_lora, lora_trainable_filter, merge_lora
from jno_lora_arrays import through

from ._ratios import per_round

VARIANTS = ("lora", "dora", "vera", "auto")

# Figures of the trial: time and memory of a step, as milliseconds and MiB over the floor's.
BEFORE = {
    ("tied", "full"): (463 / 97, 76 / 18),
    ("tied", "auto merged"): (1194 / 97, 163 / 18),
    ("tied", "dora merged"): (2340 / 97, 260 / 18),
    ("experts", "auto merged"): (814 / 453, 84 / 56),
}
BEFORE_ONE_TOKEN = {"dora": 6.35}  # over the base's forward pass
BEFORE_KEPT = {"lora": 12.0, "dora": 17.0, "vera": 15.5, "ia3": 15.4, "lokr": 15.1}  # MiB


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
        """The outputs. Each expert gets the same number of rows."""
        x = jax.vmap(self.dense)(x)
        sizes = jnp.full(self.experts, x.shape[0] // self.experts)
        gate = jax.lax.ragged_dot(x, self.gate.weight.transpose(0, 2, 1), sizes)
        up = jax.lax.ragged_dot(x, self.up.weight.transpose(0, 2, 1), sizes)
        hidden = jax.nn.silu(gate) * up
        return jax.lax.ragged_dot(hidden, self.down.weight.transpose(0, 2, 1), sizes)


class Block(eqx.Module):
    """A transformer's block with the layers of Llama."""

    layers: dict[str, eqx.nn.Linear]
    norms: list[eqx.nn.RMSNorm]
    heads: int = eqx.field(static=True)

    def __init__(self, size: int, hidden: int, heads: int, key: Any):
        sizes = dict.fromkeys("qkvo", (size, size))
        sizes |= {"gate": (size, hidden), "up": (size, hidden), "down": (hidden, size)}
        pairs = zip(sizes.items(), jr.split(key, len(sizes)), strict=True)
        self.layers = {name: eqx.nn.Linear(*s, use_bias=False, key=k) for (name, s), k in pairs}
        self.norms = [eqx.nn.RMSNorm(size, use_bias=False) for _ in range(2)]
        self.heads = heads

    def __call__(self, x: Any) -> Any:
        """The outputs for a row of tokens, `(tokens, size)`."""
        call = {name: jax.vmap(layer) for name, layer in self.layers.items()}
        h = jax.vmap(self.norms[0])(x)
        q, k, v = (call[name](h).reshape(len(x), self.heads, -1) for name in "qkv")
        x = x + call["o"](jax.nn.dot_product_attention(q, k, v, is_causal=True).reshape(x.shape))
        h = jax.vmap(self.norms[1])(x)
        return x + call["down"](jax.nn.silu(call["gate"](h)) * call["up"](h))


def main() -> None:
    """Measure everything and print it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="small shapes, to check that it runs")
    quick = parser.parse_args().quick
    words, size, tokens, hidden = (256, 32, 16, 32) if quick else (32_768, 512, 256, 1024)
    rounds = 2 if quick else 7
    keys = jr.split(jr.key(0), 5)
    ids = jr.randint(keys[2], (tokens,), 0, words)
    x = jr.normal(keys[3], (tokens, size), jnp.bfloat16)
    steps("tied", half(Tied(words, size, keys[0])), ids, rounds)
    steps("experts", half(Experts(8, size, hidden, keys[1])), x, rounds)
    block = Block(size, 4 * size, 8, keys[4])
    one_token(half(block), x[:1], rounds)
    one_token(block, x[:1].astype(jnp.float32), rounds)
    saved_activations(half(block), x)


def half(model: Any) -> Any:
    """The model in bfloat16."""
    return jax.tree.map(lambda a: a.astype(jnp.bfloat16) if eqx.is_array(a) else a, model)


def adapted(model: Any, variant: str) -> Any:
    """The model with adapters of rank 8 on all layers."""
    wrappers = variant if variant == "auto" else [variant, f"{variant}-embedding"]
    return apply_lora(model, 8, key=jr.key(1), wrapper=wrappers)


def steps(name: str, model: Any, x: Any, rounds: int) -> None:
    """Print time and memory of a step of each side, in units of the floor."""
    call = lambda model, x: model(x)  # noqa: E731
    dense = apply_lora(model, 8, key=jr.key(1), target="dense", wrapper="LoRALinear")
    sides = {"floor": step(dense, call, x), "full": step(model, call, x, full=True)}
    for variant in VARIANTS:
        sides[f"{variant} merged"] = step(adapted(model, variant), call, x)
        sides[f"{variant} through"] = step(adapted(model, variant), through(call), x)
    seconds = interleaved({side: run for side, (run, _) in sides.items()}, rounds)
    least = sides["floor"][1].temp_size_in_bytes
    time = statistics.median(taken["floor"] for taken in seconds)
    print(f"{name}: a step over the floor's ({1e3 * time:.0f} ms, {least / 2**20:.0f} MiB)")
    for side, (_, memory) in sides.items():
        if side != "floor":
            before = BEFORE.get((name, side))
            trial = "" if before is None else "   before {:.2f}, {:.2f}".format(*before)
            size = memory.temp_size_in_bytes / least
            print(f"  {side:14} time {over(seconds, side, 'floor')} memory {size:5.2f}{trial}")


def one_token(block: Block, x: Any, rounds: int) -> None:
    """Print the time of the forward pass of one token, in units of the base's."""
    models = {variant: adapted(block, variant) for variant in ("lora", "vera", "dora")}
    models |= {"base": block, "dora, merged": merge_lora(models["dora"])}
    sides = {name: forward(model, x) for name, model in models.items()}
    seconds = interleaved(sides, 3 * rounds)
    print(f"one token: the forward pass of a block in {x.dtype} over the base's")
    for side in sorted(sides.keys() - {"base"}):
        trial = f"   before {BEFORE_ONE_TOKEN[side]}" if side in BEFORE_ONE_TOKEN else ""
        print(f"  {side:14} time {over(seconds, side, 'base')}{trial}")


def saved_activations(block: Block, x: Any) -> None:
    """Print the size of the activations that a block saves for the backward pass."""
    least = 0.0
    print(f"kept: MiB of a block for a row of {len(x)} tokens, and over LoRA's")
    for variant, before in BEFORE_KEPT.items():
        model = adapted(block, variant)
        trainable, frozen = eqx.partition(model, lora_trainable_filter(model))
        size = growth(trainable, frozen, x) / 2**20
        least = least or size
        trial = f"   before {before}, {before / BEFORE_KEPT['lora']:.2f}"
        print(f"  {variant:14} {size:5.2f}, {size / least:.2f}{trial}")


def step(model: Any, function: Any, x: Any, full: bool = False) -> tuple[Callable[[], Any], Any]:
    """A call of the compiled gradient of the loss, and XLA's analysis of its memory."""
    selection = eqx.is_inexact_array if full else lora_trainable_filter(model)
    trainable, frozen = eqx.partition(model, selection)
    arrays, static = eqx.partition(frozen, eqx.is_array)

    def loss(trainable: Any, arrays: Any, x: Any) -> Any:
        y = function(eqx.combine(trainable, arrays, static), x).astype(jnp.float32)
        return jnp.mean(jax.nn.logsumexp(y, axis=-1) - y[:, 0])

    compiled = jax.jit(jax.grad(loss)).lower(trainable, arrays, x).compile()
    return lambda: jax.block_until_ready(compiled(trainable, arrays, x)), compiled.memory_analysis()


def forward(model: Any, x: Any) -> Callable[[], Any]:
    """Many calls of the compiled model."""
    arrays, static = eqx.partition(model, eqx.is_array)
    arrays = jax.tree.map(jnp.copy, arrays)  # so that sides do not share weights in caches
    compiled = jax.jit(lambda arrays, x: eqx.combine(arrays, static)(x)).lower(arrays, x).compile()
    return lambda: jax.block_until_ready([compiled(arrays, x) for _ in range(20)])


def growth(trainable: Any, frozen: Any, x: Any) -> int:
    """The bytes that the backward pass saves per row. The difference leaves out the weights."""

    def size(rows: int) -> int:
        def backward(trainable: Any, xs: Any) -> Any:
            call = lambda t, xs: jax.vmap(eqx.combine(t, frozen))(xs)  # noqa: E731
            return jax.vjp(call, trainable, xs)[1]

        shapes = jax.eval_shape(backward, trainable, jnp.stack([x] * rows))
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes))

    return size(2) - size(1)


def interleaved(sides: Mapping[str, Callable[[], Any]], rounds: int) -> list[dict[str, float]]:
    """The processor's seconds of each side in each round."""
    return [
        {side: timed(sides[side]) for side in random.sample(list(sides), len(sides))}
        for _ in range(rounds)
    ]


def over(seconds: list[dict[str, float]], side: str, reference: str) -> str:
    """The median and quartiles of the ratio of `side` to `reference`."""
    ratio = per_round(seconds, side)[reference]
    return "{median:5.2f} {quartiles:14}".format(
        median=ratio["median"], quartiles=f"[{ratio['q1']:.2f}, {ratio['q3']:.2f}]"
    )


def timed(run: Callable[[], Any]) -> float:
    """The processor's seconds of one call."""
    start = time.process_time()
    run()
    return time.process_time() - start


if __name__ == "__main__":
    main()
