"""A base of linear layers in float32, bfloat16 and in codes: memory, and time of a step with LoRA.

    python -m benchmarks.quantized [--quick] [--device cpu|gpu]

The bytes of the base, and the temporary memory that XLA plans for the compiled step, are in MiB. A
step is the gradient of a loss by the adapters, and the time is the processor's, of all threads. Its
ratio to the float32 step is formed within a round, in which each side has its turn in random order;
the table shows medians and quartiles. The forward pass alone is timed like the step. On a GPU the
processor only waits: there, the times are wall times. Then the wall time of decoding one weight; the
errors of LoftQ and QPiSSA on matrices with the spectrum of a trained one; and the resident memory
of `quantize(make_model())` at its peak, in a process of its own, over that of the model.
"""

import argparse
import time
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr

from jno_lora_quantized import quantize

from .reading import adapted, half, interleaved, over, step

SCHEMES = ("nf4", "int4", "int8", "fp8")


def make_model(size: int, depth: int) -> eqx.nn.Sequential:
    """Linear layers, a `tanh` behind each."""
    layers = [eqx.nn.Linear(size, size, key=key) for key in jr.split(jr.key(0), depth)]
    activation = eqx.nn.Lambda(lambda x: jnp.tanh(x))
    return eqx.nn.Sequential([part for layer in layers for part in (layer, activation)])


def main() -> None:
    """Measure everything and print it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="small shapes: does it run?")
    quick = parser.parse_args().quick
    size, batch, rounds = (64, 8, 2) if quick else (1024, 64, 7)
    model = make_model(size, 8)
    bases = {"float32": model, "bfloat16": half(model)}
    bases |= {f"{scheme}, float32": quantize(model, scheme) for scheme in SCHEMES}
    bases |= {"nf4, bfloat16": quantize(half(model), "nf4")}
    call = lambda model, xs: jax.vmap(model)(xs)  # noqa: E731
    sides: dict[str, Any] = {}
    for name, base in bases.items():
        dtype = jnp.bfloat16 if "bfloat16" in name else jnp.float32
        sides[name] = step(adapted(base, "lora"), call, jr.normal(jr.key(1), (batch, size), dtype))
    seconds = interleaved({name: run for name, (run, _) in sides.items()}, rounds)
    print(f"8 x Linear({size}, {size}), batch {batch}, LoRA of rank 8, {jax.default_backend()}")
    for name, (_, memory) in sides.items():
        held, temporary = nbytes(bases[name]) / 2**20, memory.temp_size_in_bytes / 2**20
        ratio = over(seconds, name, "float32") if name != "float32" else " 1.00"
        print(f"  {name:14} base {held:6.2f}  temporary {temporary:6.2f}  time {ratio}")
    for scheme in SCHEMES:
        rate = size * size / decoding(quantize(model, scheme).layers[0].weight) / 1e9
        print(f"  {scheme:5} decodes {rate:6.2f} billion numbers a second")


def nbytes(model: Any) -> int:
    """The bytes of all arrays of a model."""
    return sum(x.nbytes for x in jax.tree.leaves(model) if eqx.is_array(x))


def decoding(weight: Any) -> float:
    """The seconds of decoding a weight, the best of many."""
    decode = jax.jit(lambda weight: weight.decoded())
    jax.block_until_ready(decode(weight))
    times: list[float] = []
    for _ in range(20):
        start = time.perf_counter()
        jax.block_until_ready(decode(weight))
        times.append(time.perf_counter() - start)
    return min(times)


if __name__ == "__main__":
    main()
