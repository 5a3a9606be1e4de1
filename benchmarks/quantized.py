"""A base of linear layers in float32, bfloat16 and in codes: memory, and time of a step with LoRA.

    python -m benchmarks.quantized [--quick] [--device cpu|gpu]

The bytes of the base, and the temporary memory that XLA plans for the compiled step, are in MiB. A
step is the gradient of a loss by the adapters, and the time is the processor's, of all threads. Its
ratio to the float32 step is formed within a round, in which each side has its turn in random order;
the table shows medians and quartiles. The forward pass alone is timed like the step. On a GPU the
processor only waits: there, the times are wall times. Then the temporary memory of a step with
twice as many layers; the wall time of decoding one weight; the errors of LoftQ and QPiSSA on a
matrix whose first directions stand out; and the peak of resident memory of `quantize(make_model())`
in a fresh process, over the memory of the model.
"""

import argparse
import pathlib
import re
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr

from jno.lora import apply_lora
from jno_lora_quantized import loftq, quantization_errors, quantize

from .reading import adapted, half, interleaved, over, step

SCHEMES = ("nf4", "int4", "int8", "fp8")
# The argument of the command in the process that measures the memory of `quantize`.
PEAK = "--peak"


def make_model(size: int, depth: int) -> eqx.nn.Sequential:
    """Linear layers, a `tanh` behind each."""
    layers = [eqx.nn.Linear(size, size, key=key) for key in jr.split(jr.key(0), depth)]
    activation = eqx.nn.Lambda(lambda x: jnp.tanh(x))
    return eqx.nn.Sequential([module for layer in layers for module in (layer, activation)])


def main() -> None:
    """Measure everything and print it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="small shapes, to check that it runs")
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument(PEAK, choices=SCHEMES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    jax.config.update("jax_platforms", "cuda,cpu" if options.device == "gpu" else "cpu")
    size, batch, rounds, depth = (64, 8, 2, 4) if options.quick else (1024, 64, 7, 16)
    if options.peak:
        print_peak(2 * size, depth, options.peak)
        return
    model, short = make_model(size, depth), make_model(size, depth // 2)
    of_steps(short, size, batch, rounds, options.device)
    of_depth(model, size, batch)
    for scheme in SCHEMES:
        rate = size * size / decoding(quantize(short, scheme).layers[0].weight) / 1e9
        print(f"  {scheme:5} decodes {rate:6.2f} billion numbers a second")
    of_starts(size // 2)
    for scheme in ("nf4", "int8"):
        line = [sys.executable, "-m", "benchmarks.quantized", PEAK, scheme]
        subprocess.run([*line, *(["--quick"] if options.quick else [])], check=True)


def of_steps(model: Any, size: int, batch: int, rounds: int, device: str) -> None:
    """Memory, and the time of a step and of a forward pass."""
    bases = {"float32": model, "bfloat16": half(model)}
    bases |= {f"{scheme}, float32": quantize(model, scheme) for scheme in SCHEMES}
    bases |= {f"{scheme}, bfloat16": quantize(half(model), scheme) for scheme in ("nf4", "int8")}
    call = lambda model, xs: jax.vmap(model)(xs)  # noqa: E731
    sides: dict[str, Any] = {}
    passes: dict[str, Callable[[], Any]] = {}
    for name, base in bases.items():
        dtype = jnp.bfloat16 if "bfloat16" in name else jnp.float32
        xs, lora = jr.normal(jr.key(1), (batch, size), dtype), adapted(base, "lora")
        sides[name], passes[name] = step(lora, call, xs), forward(lora, xs)
    measure = interleaved if device == "cpu" else by_wall
    seconds = measure({name: run for name, (run, _) in sides.items()}, rounds)
    forwards = measure(passes, rounds)
    print(f"{depth_of(model)} x Linear({size}, {size}), batch {batch}, LoRA of rank 8, {device}")
    for name, (_, memory) in sides.items():
        base_size, temporary = nbytes(bases[name]) / 2**20, memory.temp_size_in_bytes / 2**20
        step_time, forward_time = (
            over(times, name, "float32") if name != "float32" else f" 1.00 {'':14}"
            for times in (seconds, forwards)
        )
        print(
            f"  {name:14} base {base_size:6.2f}  temporary {temporary:6.2f}  step {step_time}  "
            f"forward {forward_time}"
        )


def of_depth(model: Any, size: int, batch: int) -> None:
    """The temporary memory of a step of a deep model, beside float32's and one decoded weight."""
    xs, call = jnp.ones((batch, size)), lambda model, xs: jax.vmap(model)(xs)
    print(f"{depth_of(model)} x Linear({size}, {size}): temporary memory over float32's, in MiB")
    for variant in ("lora", "dora"):
        plain = step(adapted(model, variant), call, xs)[1].temp_size_in_bytes
        for scheme in SCHEMES:
            coded = adapted(quantize(model, scheme), variant)
            memory = step(coded, call, xs)[1].temp_size_in_bytes
            more = (memory - plain) / (4 * size * size)
            print(
                f"  {variant} {scheme:5} {memory / 2**20:6.2f}, {plain / 2**20:6.2f} in float32: "
                f"{more:.2f} decoded weights more"
            )


def of_starts(size: int) -> None:
    """The errors of codes, and of adapters that start with the rounding errors of the codes."""
    U, _, Vt = jnp.linalg.svd(jr.normal(jr.key(3), (size, size)))
    # Some directions stand out from the noise, as in MiniLM's matrices.
    S = 1 + 4 * jnp.exp(-jnp.arange(size) / (size / 16))
    layer = eqx.nn.Linear(size, size, key=jr.key(0))
    W = (U * S) @ Vt + jr.normal(jr.key(4), (size, size))
    layer = eqx.tree_at(lambda m: m.weight, layer, W / jnp.sqrt(size))
    rank = min(32, size // 2)
    lora = apply_lora(layer, rank, float(rank), key=jr.key(1), wrapper="lora")
    pissa = apply_lora(layer, rank, float(rank), key=jr.key(1), wrapper="pissa")
    models = {
        "quantize": quantize(layer),
        "LoftQ, 1 turn": loftq(lora, iterations=1),
        "LoftQ, 5 turns": loftq(lora),
        "PiSSA, then quantize": quantize(pissa),
        "QPiSSA, 5 turns": loftq(lora, start="pissa"),
    }
    print(f"Errors of nf4 with adapters of rank {rank}, on a matrix of {size} x {size}")
    for name, model in models.items():
        errors = quantization_errors(layer, model)
        print(f"  {name:21} relative {errors.relative:.4f}  largest {errors.largest:.4f}")


def print_peak(size: int, depth: int, scheme: str) -> None:
    """Print the peak of resident memory in `quantize`, without JAX's memory before the call."""
    quantize(eqx.nn.Linear(size, size, key=jr.key(0)), scheme)  # compiles
    jax.block_until_ready(make_model(size, 1))
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before = resident("VmRSS")
    quantized = quantize(make_model(size, depth), scheme)
    peak = resident("VmHWM") - before
    layer, codes = 4 * size * size, nbytes(quantized)
    print(
        f"quantize(make_model(), {scheme!r}), {depth} layers of {layer / 2**20:.0f} MiB: peak "
        f"{peak / (layer * depth):.2f} of the model, codes {codes / (layer * depth):.2f}"
    )


def resident(field: str) -> int:
    """The bytes in this field of the process's status on Linux."""
    status = pathlib.Path("/proc/self/status").read_text()
    return 1024 * int(re.search(rf"{field}:\s*(\d+)", status)[1])  # pyright: ignore[reportOptionalSubscript]


def by_wall(sides: dict[str, Callable[[], Any]], rounds: int) -> list[dict[str, float]]:
    """As `interleaved`, by wall time."""
    for run in sides.values():
        run()
    return [{name: timed(run) for name, run in sides.items()} for _ in range(rounds)]


def timed(run: Callable[[], Any]) -> float:
    """The seconds of one call."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def forward(model: Any, xs: Any) -> Callable[[], Any]:
    """A call of the compiled model with a batch."""
    arrays, static = eqx.partition(model, eqx.is_array)
    function = lambda arrays, xs: jax.vmap(eqx.combine(arrays, static))(xs)  # noqa: E731
    compiled = jax.jit(function).lower(arrays, xs).compile()
    return lambda: jax.block_until_ready(compiled(arrays, xs))


def depth_of(model: Any) -> int:
    """The number of linear layers."""
    return len(model.layers) // 2


def nbytes(model: Any) -> int:
    """The bytes of all arrays of a model."""
    return sum(x.nbytes for x in jax.tree.leaves(model) if eqx.is_array(x))


def decoding(weight: Any) -> float:
    """The seconds of decoding a weight, the fastest of 20 calls."""
    decode = jax.jit(lambda weight: weight.decoded())
    jax.block_until_ready(decode(weight))
    return min(timed(lambda: jax.block_until_ready(decode(weight))) for _ in range(20))


if __name__ == "__main__":
    main()
