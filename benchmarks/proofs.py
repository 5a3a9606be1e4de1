"""What a proof costs, beside saving, loading, and a forward pass with the adapters and without.

    python -m benchmarks.proofs

A Fourier neural operator as in the studies, a transformer of 12 layers of width 384, and MiniLM
itself where `make test-models` installed it (.venv-models/bin/python). Eight inputs. The first
calls compile, as a user's do; the others are medians of five.
"""

import importlib.util
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from foundax import fno1d

from jno.lora import Net, disabled
from jno_lora_proof import prove


class Encoder(eqx.Module):
    """Twelve layers of attention, of MiniLM's width."""

    layers: list[eqx.nn.MultiheadAttention]

    def __init__(self, key: jax.Array):
        keys = jax.random.split(key, 12)
        self.layers = [eqx.nn.MultiheadAttention(12, 384, key=key) for key in keys]

    def __call__(self, x: jax.Array) -> jax.Array:
        """The outputs `(length, 384)`."""
        for layer in self.layers:
            x = x + layer(x, x, x)
        return x


class Embedder(eqx.Module):
    """The embedding of a sentence."""

    encoder: Any

    def __call__(self, ids: jax.Array, mask: jax.Array) -> jax.Array:
        """The embedding `(384,)` of tokens `(length,)`."""
        return self.encoder.embed(ids, mask)


def cases() -> dict[str, tuple[Net, tuple[jax.Array, ...]]]:
    """Nets with trained adapters, and eight inputs of each."""
    key = jax.random.key(0)
    operator = fno1d(2, 32, 12, n_layers=3, linear_conv=False, key=key)
    specs = [{"wrapper": "cp", "rank": 4}, {"wrapper": "lora", "rank": 1}]
    found = {
        "FNO": (Net(operator).freeze().lora(specs=specs), (jax.random.normal(key, (8, 64, 2)),)),
        "12 layers of attention": (
            Net(Encoder(key)).freeze().lora(rank=8, target="(query|value)_proj"),
            (jax.random.normal(key, (8, 32, 384)),),
        ),
    }
    if importlib.util.find_spec("all_minilm_l6_v2") is not None:
        from examples.minilm_classification import LENGTH, load_model

        with tempfile.TemporaryDirectory() as folder:
            encoder, _ = load_model(pathlib.Path(folder))
        net = Net(Embedder(encoder)).freeze().lora(rank=8, target="query|value")
        ids = jax.random.randint(key, (8, LENGTH), 1000, 20000)
        found["MiniLM"] = net, (ids, jnp.ones_like(ids))
    for net, _ in found.values():
        net.update(jax.tree.map(lambda x: x + 0.05, net.partition()[0]))
    return found


def seconds(run: Callable[[], Any]) -> tuple[float, float]:
    """Of the first call, and the median of five further calls."""
    taken: list[float] = []
    for _ in range(6):
        start = time.perf_counter()
        jax.block_until_ready(run())
        taken.append(time.perf_counter() - start)
    return taken[0], statistics.median(taken[1:])


def main() -> None:
    """Measure everything and print it."""
    print("| | bytes | first call, s | later, s |\n|---|--:|--:|--:|")
    for name, (net, inputs) in cases().items():
        for row in measured(net, inputs):
            print(f"| {name}: {row}")


def measured(net: Net, inputs: tuple[jax.Array, ...]) -> Iterator[str]:
    """A row of the table for each thing that takes time."""
    folder = pathlib.Path(tempfile.mkdtemp())
    plain, proved = folder / "plain.safetensors", folder / "proved.safetensors"
    base = disabled(net.module)
    forward = eqx.filter_jit(lambda model, xs: jax.vmap(model)(*xs))
    runs: dict[str, Callable[[], Any]] = {
        "two forward passes": lambda: (forward(net.module, inputs), forward(base, inputs)),
        "save": lambda: net.save_adapters(plain).active,
        "save with a proof": lambda: net.save_adapters(proved, proof=inputs).active,
        "load": lambda: Net(base).load_adapters(plain).module,
        "prove": lambda: prove(net, proved).error,
        "prove without calls": lambda: prove(net, proved, run=False).expected,
    }
    files = {"save": plain, "save with a proof": proved}
    for what, run in runs.items():
        first, later = seconds(run)
        size = f"{files[what].stat().st_size:,}" if what in files else ""
        yield f"{what} | {size} | {first:.2f} | {later:.3f} |"


if __name__ == "__main__":
    jnp.zeros(1).block_until_ready()  # starts the backend
    main()
