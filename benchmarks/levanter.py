"""A training step of LoRA in Levanter's models, beside Levanter's own LoRA.

    make bench-levanter, or .venv-levanter/bin/python -m benchmarks.levanter [--quick] [MODEL ...]

Both adapt every linear layer of a model with the same base weights, rank and alpha, and take the
same batch: the loss, its gradient in the adapters' arrays, and a step of SGD, as one jitted program
in float32. Times are the processor's, on one core, as medians of interleaved rounds in one process.

The goal: a step takes at most the time of Levanter's.
"""

import argparse
import functools
import os
import random
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax

warnings.filterwarnings("ignore", "jax.core.is_constant_dim", DeprecationWarning)

import haliax as hax  # noqa: E402
from levanter.layers.attention import AttentionMask  # noqa: E402
from levanter.lora import (  # noqa: E402
    LoraConfig,
    combine_lora_params,
    loraize,
    partition_lora_params,
)
from levanter.models.gpt2 import Gpt2Config  # noqa: E402
from levanter.models.llama import LlamaConfig  # noqa: E402

import jno_lora_haliax  # noqa: E402, F401
from jno.lora import Net  # noqa: E402

RANK, ALPHA, RATE = 8, 16.0, 1e-3
BATCH, VOCAB = hax.Axis("batch", 4), hax.Axis("vocab", 512)


def llama(hidden: int, positions: int, **options: Any) -> LlamaConfig:
    """A Llama of 4 layers."""
    sizes = {"hidden_dim": hidden, "intermediate_dim": 3 * hidden, "num_heads": 8}
    sizes |= {"num_kv_heads": 4, "num_layers": 4, "seq_len": positions}
    return LlamaConfig(**sizes, gradient_checkpointing=False, **options)


def gpt2(hidden: int, positions: int) -> Gpt2Config:
    """A GPT-2 of 4 layers."""
    sizes = {"hidden_dim": hidden, "num_heads": 8, "num_layers": 4, "seq_len": positions}
    return Gpt2Config(**sizes, gradient_checkpointing=False)


# By name: the configuration for a hidden size and a number of positions, and the hidden size.
MODELS: dict[str, tuple[Callable[..., Any], int]] = {
    "Llama, 4 x 128": (llama, 128),
    "Llama, 4 x 256": (llama, 256),
    "Llama, 4 x 256, a list of layers": (functools.partial(llama, scan_layers=False), 256),
    "GPT-2, 4 x 256": (gpt2, 256),
}


def theirs(model: Any) -> tuple[Any, Any, Callable[..., Any]]:
    """The trained and the frozen arrays of Levanter's LoRA, and the function that joins them."""
    adapted = loraize(model, LoraConfig(r=RANK, alpha=ALPHA), jax.random.key(1))
    frozen, trained = partition_lora_params(adapted)
    return trained, frozen, lambda trained, frozen: combine_lora_params(frozen, trained)


def ours(model: Any) -> tuple[Any, Any, Callable[..., Any]]:
    """The same of ours."""
    net = Net(model, key=jax.random.key(1)).freeze().lora(rank=RANK, alpha=ALPHA)
    return *net.partition(), eqx.combine


def step_of(side: Callable[..., Any], model: Any, ids: Any) -> tuple[Callable[..., Any], Any]:
    """A step as a compiled program of the trained arrays, and these arrays."""
    trained, frozen, join = side(model)
    trained, rest = eqx.partition(trained, eqx.is_array)
    arrays, static = eqx.partition(frozen, eqx.is_array)

    def loss(trained: Any, arrays: Any) -> jax.Array:
        model = join(eqx.combine(trained, rest), eqx.combine(arrays, static))
        logits = model(ids, attn_mask=AttentionMask.causal())
        targets = hax.nn.one_hot(hax.roll(ids, -1, "position"), VOCAB)
        return hax.nn.cross_entropy_loss(logits, VOCAB, targets, reduction=None).array.mean()

    def step(trained: Any, arrays: Any) -> tuple[Any, jax.Array]:
        value, gradient = jax.value_and_grad(loss)(trained, arrays)
        return jax.tree.map(lambda x, g: x - RATE * g, trained, gradient), value

    compiled = jax.jit(step).lower(trained, arrays).compile()
    return lambda trained: compiled(trained, arrays), trained


def seconds(step: Callable[..., Any], trained: Any, steps: int) -> float:
    """The processor's time of one step."""
    start = time.process_time()
    for _ in range(steps):
        trained, value = step(trained)
    jax.block_until_ready(value)
    return (time.process_time() - start) / steps


def main() -> None:
    """Measure every model and print a table."""
    parser = argparse.ArgumentParser(description="A training step beside Levanter's LoRA.")
    parser.add_argument("models", nargs="*", metavar="MODEL", help="names of the table; or all")
    parser.add_argument("--quick", action="store_true", help="small, to check that it runs")
    options = parser.parse_args()
    quick, names = options.quick, options.models or list(MODELS)
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    positions, rounds, steps = (16, 1, 1) if quick else (128, 15, 3)
    order = random.Random(0)
    print(f"jax {jax.__version__}, {BATCH.size} x {positions} tokens, rank {RANK}\n")
    print("| | Levanter, ms | here, ms | ratio | goal |\n|---|--:|--:|--:|---|")
    for name in names:
        configure, hidden = MODELS[name]
        config = configure(16 if quick else hidden, positions)
        model = config.model_type.init(VOCAB, config, key=jax.random.key(0))
        axes = (BATCH, hax.Axis("position", positions))
        ids = hax.random.randint(jax.random.key(2), axes, 0, VOCAB.size)
        sides = [step_of(side, model, ids) for side in (theirs, ours)]
        times: list[list[float]] = [[], []]
        for side in sides:
            seconds(*side, 1)
        for _ in range(rounds):
            for n in order.sample((0, 1), 2):
                times[n].append(seconds(*sides[n], steps))
        ratio = statistics.median(mine / peer for peer, mine in zip(*times, strict=True))
        cells = " | ".join(f"{1e3 * statistics.median(side):.1f}" for side in times)
        verdict = "met" if ratio <= 1 else "missed"
        print(f"| {name} | {cells} | {ratio:.2f} | {verdict} |", flush=True)


if __name__ == "__main__":
    main()
