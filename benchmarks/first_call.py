"""The waits before the first step: adapting a new model, tracing and compiling its step.

    python -m benchmarks.first_call [--quick] [--apart]

The model is a transformer of 12 blocks with seven linear layers each, in a Python loop, and every
linear layer has an adapter of rank 8. It trains by Adam.

* **net.lora**: seconds of the first call on the model, which compiles a program for each shape of a
  layer, and of the second call. The first row includes the loading of plugins.
* **trace**: tracing and lowering the step, over the same time for full fine-tuning; **compile**:
  compiling the step; **both**: the sum. Caches are emptied before each step. Medians of the rounds.
* **PiSSA, 7B**: seconds to plan the adapters of a model of shapes, and to adapt a real layer of
  4096 x 11008 in bfloat16.

Time is the processor's, of all threads, because other programs may run meanwhile.
"""

import argparse
import random
import statistics
import time
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import optax

from jno.lora import Net, apply_lora, lora_trainable_filter, plan_lora
from jno_lora_zoo import _method

from .reading import Block, half

VARIANTS = ("lora", "pissa", "dora", "ia3", "lokr", "vera", "oft")
FULL = "full fine-tuning"


class Transformer(eqx.Module):
    """Blocks, one after the other."""

    blocks: list[Block]

    def __init__(self, blocks: int, size: int, heads: int, key: Any):
        keys = jr.split(key, blocks)
        self.blocks = [Block(size, 4 * size, heads, key) for key in keys]

    def __call__(self, x: Any) -> Any:
        """The outputs for a row of tokens, `(tokens, size)`."""
        for block in self.blocks:
            x = block(x)
        return x


def main() -> None:
    """Measure everything and print it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="small shapes, to check that it runs")
    parser.add_argument("--apart", action="store_true", help="layers share no traces")
    options = parser.parse_args()
    quick = options.quick
    if options.apart:
        _method.traced_once = lambda function, layer, x: function(layer, x)
    model = Transformer(*((2, 32, 2) if quick else (12, 256, 4)), key=jr.key(0))
    x = jr.normal(jr.key(1), (4, 16, model.blocks[0].layers["q"].in_features))
    print("net.lora: seconds of the first and the second call")
    for variant in VARIANTS:
        first, second = (seconds(lambda v=variant: adapted(model, v)) for _ in range(2))
        print(f"  {variant:6} {first:6.2f} {second:6.2f}")
    steps(model, x, rounds=2 if quick else 3)
    pissa(*((2, 64, 96) if quick else (32, 4096, 11008)))


def adapted(model: Any, variant: str) -> Any:
    """The model with an adapter around every linear layer."""
    net = Net(model)
    net.lora(rank=8, wrapper=variant)
    return jax.block_until_ready(eqx.filter(net.module, eqx.is_array)) and net.module


def steps(model: Any, x: Any, rounds: int) -> None:
    """Print how long each variant's step takes to trace and to compile, over full fine-tuning."""
    models = {FULL: model} | {variant: adapted(model, variant) for variant in VARIANTS}
    took: dict[str, list[tuple[float, float]]] = {name: [] for name in models}
    for _ in range(rounds):
        for name in random.sample(list(models), len(models)):
            took[name].append(compiling(models[name], x, full=name == FULL))
    base = [statistics.median(times) for times in zip(*took[FULL], strict=True)]
    print(f"a step over a step of {FULL} ({base[0]:.2f} s to trace, {base[1]:.2f} s to compile)")
    for name in VARIANTS:
        trace, compile_ = (statistics.median(times) for times in zip(*took[name], strict=True))
        total = (trace + compile_) / sum(base)
        print(
            f"  {name:6} trace {trace / base[0]:5.2f}  compile {compile_ / base[1]:5.2f}  "
            f"both {total:5.2f}  ({trace + compile_ - sum(base):+.2f} s)"
        )


def compiling(model: Any, x: Any, full: bool) -> tuple[float, float]:
    """The seconds that tracing and compiling a step take."""
    selection = eqx.is_inexact_array if full else lora_trainable_filter(model)
    trainable, frozen = eqx.partition(model, selection)
    arrays, static = eqx.partition(frozen, eqx.is_array)
    optimiser = optax.adam(1e-3)
    state = optimiser.init(trainable)

    def loss(trainable: Any, arrays: Any, x: Any) -> Any:
        return jnp.mean(jax.vmap(eqx.combine(trainable, arrays, static))(x) ** 2)

    def step(trainable: Any, state: Any, arrays: Any, x: Any) -> Any:
        value, grads = jax.value_and_grad(loss)(trainable, arrays, x)
        updates, state = optimiser.update(grads, state)
        return optax.apply_updates(trainable, updates), state, value

    jax.clear_caches()
    start = time.process_time()
    lowered = jax.jit(step).lower(trainable, state, arrays, x)
    between = time.process_time()
    lowered.compile()
    return between - start, time.process_time() - between


def pissa(blocks: int, size: int, hidden: int) -> None:
    """Print how long PiSSA takes on the shapes of a large model."""

    def make() -> Any:
        key = jr.key(0)
        return half([Block(size, hidden, size // 32, key).layers for _ in range(blocks)])

    skeleton = eqx.filter_eval_shape(make)
    print(f"PiSSA, {blocks} blocks of width {size} and inner width {hidden}, rank 16")
    planning = seconds(lambda: plan_lora(skeleton, 16, wrapper="pissa"))
    print(f"  plan of {7 * blocks} layers of shapes: {planning:.2f} s")
    layer = eqx.nn.Linear(hidden, size, use_bias=False, dtype=jnp.bfloat16, key=jr.key(0))

    def adapt() -> Any:
        adapter = apply_lora(layer, 16, key=jr.key(1), wrapper="pissa")
        return jax.block_until_ready(eqx.filter(adapter, eqx.is_array))

    first, *later_times = (seconds(adapt) for _ in range(4))
    later = statistics.median(later_times)
    print(f"  a layer of {size} x {hidden}: {first:.2f} s at first, then {later:.2f} s")


def seconds(call: Callable[[], Any]) -> float:
    """The processor's seconds of one call."""
    start = time.process_time()
    call()
    return time.process_time() - start


if __name__ == "__main__":
    main()
