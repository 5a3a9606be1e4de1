"""The cost of an ensemble of five adapters, as ratios to one adapter of the same model.

    python -m benchmarks.ensembles [--quick]

The Fourier neural operator of the studies (width 32, 12 modes, 3 layers, 64 points) with LoRA of
rank 1 and CP of rank 4, on a batch of 8 simulations. Rounds are interleaved, and each ratio is
formed within a round. Steps and training runs of five members are compared with one member, and
with five, one after the other; a prediction with one call of an adapted model, and with five. A
training run has 400 steps, and compiles its step.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from foundax import fno1d

from benchmarks._ratios import Ratio
from jno.lora import Net
from jno_lora_train import Trainer
from jno_lora_uncertainty import Ensemble, calibrate, folds, predict

MEMBERS = 5
SPECS = [{"wrapper": "cp", "rank": 4}, {"wrapper": "lora", "rank": 1}]


def called(model: Any, field: jax.Array) -> jax.Array:
    """The model's solution for one field."""
    x = jnp.linspace(-1, 1, len(field), endpoint=False)
    return model(jnp.stack([field, x], axis=-1))[0, :, 0]


def error(model: Any, data: Any) -> jax.Array:
    """The mean square error on a batch."""
    fields, solutions = data
    return jnp.mean((jax.vmap(lambda field: called(model, field))(fields) - solutions) ** 2)


def sides(width: int, points: int, batch: int, steps: int) -> dict[str, Callable[[], Any]]:
    """By name, a function that runs one step, or one prediction for a batch."""
    model = fno1d(2, width, 12, n_layers=3, linear_conv=False, key=jax.random.key(0))

    def make(key: Any) -> Net:
        return Net(model, key=key).freeze().lora(specs=SPECS)

    fields = jax.random.normal(jax.random.key(1), (batch * 5 // 4, points))
    data = fields, jnp.sin(fields)
    parts = folds(len(fields), MEMBERS, key=jax.random.key(2))
    ensemble = Ensemble(make, MEMBERS, key=jax.random.key(3), call=called)
    net = make(jax.random.key(3))

    def stepped(loss: Any, halves: Any, batch: Any) -> Callable[[], Any]:
        trainable, frozen = halves
        trainer = Trainer(loss, optax.adam(1e-3))
        run = trainer.start(trainable)
        return lambda: trainer.step(run, frozen, batch)

    def trained(loss: Any, halves: Any, batch: Any) -> Callable[[], Any]:
        return lambda: Trainer(loss, optax.adam(1e-3)).fit(*halves, [batch] * steps).trainable

    of_members = parts.training(data)
    of_one = jax.tree.map(lambda x: x[0], of_members)
    calibrated = calibrate(ensemble, *data, parts)
    inputs = fields[:batch]
    predicted = eqx.filter_jit(lambda c, x: jax.vmap(lambda x: predict(c, x))(x))
    evaluated = eqx.filter_jit(lambda m, x: jax.vmap(lambda x: called(m, x))(x))
    return {
        "one step": stepped(error, net.partition(), of_one),
        "ensemble's step": stepped(Ensemble.loss(error), ensemble.partition(), of_members),
        "one call": lambda: evaluated(net.module, inputs),
        "prediction": lambda: predicted(calibrated, inputs),
        "one run": trained(error, net.partition(), of_one),
        "training run": trained(Ensemble.loss(error), ensemble.partition(), of_members),
    }


def main() -> None:
    """Measure everything and print it."""
    parser = argparse.ArgumentParser(description="The cost of an ensemble of five adapters.")
    parser.add_argument("--quick", action="store_true", help="small shapes, to check that it runs")
    quick = parser.parse_args().quick
    runs = sides(*((4, 32, 4, 3) if quick else (32, 64, 8, 400)))
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(3 if quick else 30):  # the first round compiles
        for name, run in runs.items():
            if "run" in name and number > 4:
                continue
            start = time.perf_counter()
            jax.block_until_ready(run())
            seconds[name].append(time.perf_counter() - start)
    print("| | to one | to five, one after the other |\n|---|---|---|")
    pairs = {"ensemble's step": "one step", "prediction": "one call", "training run": "one run"}
    for name, single in pairs.items():
        ratios = [a / b for a, b in zip(seconds[name][1:], seconds[single][1:], strict=True)]
        cells = [
            f"{r.median / n:.2f} [{r.q1 / n:.2f}, {r.q3 / n:.2f}]"
            for r in [Ratio.of(ratios)]
            for n in (1, MEMBERS)
        ]
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
