"""The cost of calibrating on a batch, beside a gradient step of full fine-tuning.

    python -m benchmarks.calibration

Prints a table for docs/calibration.md. The rounds of all rows are interleaved, and a cell is the
median of the ratios within a round. The cost of a batch is the time of a call with many batches
less the time of a call with one batch, per batch.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from jno_lora_zoo import collect_statistics

ROUNDS, BATCHES = 9, 8


def mlp() -> tuple[Any, Any]:
    """Four `Linear(1024, 1024)`, a batch of 256."""
    model = eqx.nn.MLP(1024, 1024, 1024, 3, key=jax.random.key(0))
    return model, jax.random.normal(jax.random.key(1), (256, 1024))


def convolutions() -> tuple[Any, Any]:
    """Four `Conv2d(32, 32, 3)` on images of 32 x 32, a batch of 16."""
    keys = jax.random.split(jax.random.key(0), 4)
    layers = [eqx.nn.Conv2d(32, 32, 3, padding=1, key=key) for key in keys]
    model = eqx.nn.Sequential(
        [module for layer in layers for module in (layer, eqx.nn.Lambda(jax.nn.relu))]
    )
    return model, jax.random.normal(jax.random.key(1), (16, 32, 32, 32))


def loss(model: Any, batch: Any) -> Any:
    """A mean square."""
    return jnp.mean(jax.vmap(model)(batch) ** 2)


@eqx.filter_jit
def gradient(model: Any, batch: Any) -> Any:
    """The gradient by all arrays, as in full fine-tuning."""
    return eqx.filter_grad(loss)(model, batch)


def seconds(function: Callable[[], Any]) -> float:
    """How long a call takes, until its arrays are computed."""
    start = time.perf_counter()
    jax.block_until_ready(jax.tree.leaves(function()))
    return time.perf_counter() - start


def main() -> None:
    """Measure, and print the table."""
    methods = {
        "covariances of inputs (EVA)": ("eva", None),
        "the same, `sketch=64`": ("eva", 64),
        "gradients (LoRA-GA)": ("lora-ga", None),
    }
    print("| model | " + " | ".join(methods) + " |\n|---|" + "---|" * len(methods))
    for make in (mlp, convolutions):
        model, batch = make()

        def passes(count: int, method: Any, model: Any = model, batch: Any = batch) -> Any:
            wrapper, sketch = method
            batches = [batch] * count
            data = collect_statistics(model, batches, loss, wrapper=wrapper, sketch=sketch)
            return [dict(data[path]) for path in data]

        def steps(model: Any = model, batch: Any = batch) -> Any:
            return [gradient(model, batch) for _ in range(BATCHES)]

        ratios: dict[Any, list[float]] = {method: [] for method in methods.values()}
        for index in range(ROUNDS + 1):
            step = seconds(steps)
            for method, of_method in ratios.items():
                many, single = (seconds(lambda n=n: passes(n, method)) for n in (BATCHES + 1, 1))  # noqa: B023
                if index:  # the first round compiles
                    of_method.append((many - single) / step)
        cells = (f"{statistics.median(of_method):.2f}" for of_method in ratios.values())
        print(f"| {make.__doc__.rstrip('.')} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
