"""What a training step keeps for its backward pass, by method and by what it computes again.

    python -m benchmarks.activations [--quick]

A transformer of 12 blocks of width 256 (batch 4 x 64) and a Fourier neural operator of 4 blocks of
32 channels on 64 x 64 points (batch 4), each as `ScannedLayers`: outside of a loop, XLA for CPUs
removes what is computed again. *Kept* counts the arrays between the passes, weights apart; *memory*
is the compiler's temporary memory. *Operations* and *time* are of the gradient, over the gradient
of the same method without `remat`; times are the processor's, of interleaved rounds, as medians.

The goal, set before the first run: with `remat="products"`, LoRA keeps at most half as much as full
fine-tuning does without it, for at most 10 % more operations.
"""

import argparse
import statistics
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import equinox as eqx
import foundax
import jax
import jax.numpy as jnp

from jno.lora import Net
from jno_lora_train import ScannedLayers

from .first_call import Transformer

KINDS = ("all parameters", "norms and biases", "lora", "lora-fa", "dora", "ia3", "pissa")
REMATS = (False, "products", True)
MIB = 2**20


class FourierBlock(eqx.Module):
    """A block of a Fourier neural operator: `(x, y, channels)` to the same shape."""

    spectral: eqx.Module
    pointwise: eqx.Module

    def __call__(self, x: Any) -> Any:
        """The output of the block."""
        y = self.pointwise(jnp.moveaxis(x, -1, 0))  # pyright: ignore[reportCallIssue]
        return jax.nn.gelu(self.spectral(x) + jnp.moveaxis(y, 0, -1))  # pyright: ignore


class Blocks(eqx.Module):
    """Blocks, one after the other."""

    blocks: ScannedLayers

    def __call__(self, x: Any) -> Any:
        """The output of all blocks."""
        return self.blocks(x)


def models(quick: bool) -> Iterator[tuple[str, list[Any], Any]]:
    """Name, blocks, and a batch of inputs."""
    size, number, tokens = (32, 2, 8) if quick else (256, 12, 64)
    blocks = Transformer(number, size, 4, jax.random.key(0)).blocks
    yield "transformer", blocks, jax.random.normal(jax.random.key(1), (4, tokens, size))
    channels, modes, points = (8, 4, 16) if quick else (32, 12, 64)
    options = {"norm": None, "linear_conv": False, "d_model": (points, points)}
    operator = foundax.fno2d(1, channels, modes, key=jax.random.key(0), **options)
    layers: Any = operator.spectral_layers  # pyright: ignore[reportAttributeAccessIssue]
    fourier = [
        FourierBlock(*pair) for pair in zip(layers.conv_layers, layers.w_layers, strict=True)
    ]
    x = jax.random.normal(jax.random.key(1), (4, points, points, channels))
    yield "Fourier neural operator", fourier, x


def trained(kind: str, model: Any) -> Net:
    """The net whose arrays of this kind train."""
    net = Net(model)
    if kind == "all parameters":
        return net
    if kind == "norms and biases":
        return net.freeze().mask("norm|bias").unfreeze()
    return net.freeze().lora(8, wrapper=kind)


class Gradient(NamedTuple):
    """A compiled gradient, its arguments, and what it costs."""

    compiled: Any
    arguments: Any
    kept: float  # MiB
    memory: float  # MiB
    operations: float


def gradient(net: Net, x: Any) -> Gradient:
    """The gradient of a mean square by the trainable arrays."""
    trainable, frozen = net.partition()
    arrays, static = eqx.partition(frozen, eqx.is_array)

    def loss(trainable: Any, arrays: Any, x: Any) -> Any:
        return jnp.mean(jax.vmap(eqx.combine(trainable, arrays, static))(x) ** 2)

    def passed(trainable: Any, arrays: Any, x: Any) -> Any:
        return jax.tree.leaves(jax.vjp(lambda t: loss(t, arrays, x), trainable)[1])

    jaxpr = jax.make_jaxpr(passed)(trainable, arrays, x).jaxpr
    inputs = set(jaxpr.invars)
    results = {var for var in jaxpr.outvars if isinstance(var, jax.extend.core.Var)}
    kept = sum(var.aval.size * var.aval.dtype.itemsize for var in results - inputs)  # pyright: ignore
    compiled = jax.jit(jax.grad(loss)).lower(trainable, arrays, x).compile()
    memory: Any = compiled.memory_analysis()
    operations: Any = compiled.cost_analysis()
    sizes = kept / MIB, memory.temp_size_in_bytes / MIB
    return Gradient(compiled, (trainable, arrays, x), *sizes, operations["flops"])


def seconds(gradients: list[Gradient], rounds: int) -> list[float]:
    """The median time of each gradient."""
    times: list[list[float]] = [[] for _ in gradients]
    for turn in range(rounds + 1):
        for index in range(len(gradients))[:: 1 if turn % 2 else -1]:
            start = time.process_time()
            jax.block_until_ready(gradients[index].compiled(*gradients[index].arguments))
            times[index].append(time.process_time() - start)
    return [statistics.median(of_gradient[1:]) for of_gradient in times]


def main() -> None:
    """Measure everything and print it."""
    parser = argparse.ArgumentParser(description="What a step keeps for its backward pass.")
    parser.add_argument("--quick", action="store_true", help="small shapes, to check that it runs")
    quick = parser.parse_args().quick
    for name, blocks, x in models(quick):
        print(f"\n| {name} | remat | kept, MiB | memory, MiB | operations | time |")
        print("|---|---|---|---|---|---|")
        goal: dict[Any, Gradient] = {}
        for kind in KINDS:
            nets = [trained(kind, Blocks(ScannedLayers(blocks, remat=remat))) for remat in REMATS]
            gradients = [gradient(net, x) for net in nets]
            times = seconds(gradients, 1 if quick else 15)
            for remat, g, took in zip(REMATS, gradients, times, strict=True):
                goal[kind, remat] = g
                ratios = g.operations / gradients[0].operations, took / times[0]
                cells = [f"{g.kept:.1f}", f"{g.memory:.1f}", *(f"{ratio:.2f}" for ratio in ratios)]
                print(f"| {kind} | {remat} | {' | '.join(cells)} |", flush=True)
        kept = goal["lora", "products"].kept / goal["all parameters", False].kept
        more = goal["lora", "products"].operations / goal["lora", False].operations
        met = "met" if kept <= 0.5 and more <= 1.1 else "missed"
        print(f"\nThe goal is {met}: {kept:.2f} of what full fine-tuning keeps, {more:.2f} of")
        print("the operations.")


if __name__ == "__main__":
    main()
