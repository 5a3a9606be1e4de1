"""AdaLoRA with its allocator beside plain LoRA of the same final rank, on the digits of the demo.

    python -m benchmarks.adalora [--quick]

`jno-lora demo` has the model, the shift of domain and the 150 scans to adapt on. Each way trains
for the same steps at four learning rates; the validation scans choose the rate. AdaLoRA starts with
1.5 times LoRA's rank in every layer, and ends with LoRA's rank on average. The scale is always 1.
Accuracies are on 500 test scans of the new domain, as means over seeds with the standard error of
the mean; a seed decides the pretraining, the split and the noise.
"""

import argparse
import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from rich.console import Console

from jno.lora import Net, lora_report, merge_lora
from jno.lora.extending import table
from jno_lora_combine import shrink
from jno_lora_demos.digits import _classifier, _data, _run
from jno_lora_train import penalty
from jno_lora_zoo import AdaLoRAController

RATES = (1e-3, 3e-3, 1e-2, 3e-2)
PENALTY = 0.1
ADAM = optax.scale_by_adam()
LAYERS = ("edges", "shapes", "hidden", "output")


class Way(NamedTuple):
    """A variant at a rank; with `target`, the mean rank that the allocator leaves."""

    name: str
    variant: str
    rank: int
    target: int | None = None
    penalty: float = 0.0


class Result(NamedTuple):
    """The best of the trainings at all rates: test accuracy, size when shrunk, and final ranks."""

    accuracy: float
    trainable: int
    ranks: tuple[int, ...]


def ways(rank: int) -> list[Way]:
    """The ways that are compared at one final rank."""
    wide = rank * 3 // 2
    return [
        Way("LoRA", "lora", rank),
        Way("AdaLoRA's law alone", "adalora", rank),
        Way("AdaLoRA, allocator", "adalora", wide, rank),
        Way("AdaLoRA, allocator and penalty", "adalora", wide, rank, PENALTY),
    ]


def train(model: Any, way: Way, batches: Sequence[Any], rate: float, key: Any) -> Any:
    """The adapted model after one step for each batch."""
    net = Net(model, key=key).freeze().lora(rank=way.rank, alpha=way.rank, wrapper=way.variant)
    steps = len(batches)
    controller = AdaLoRAController(
        target_rank=way.target or way.rank,
        warmup=steps // 10,
        final=steps // 3,
        total=steps,
        every=10,
    )
    trainable, frozen = net.partition()
    moments = ADAM.init(trainable)
    state = None if way.target is None else controller.init(trainable)
    numbers = jnp.asarray(rate), jnp.asarray(way.penalty)  # arrays, so that one program serves all
    for batch in batches:
        trainable, moments, state = _step(
            trainable, frozen, moments, state, batch, *numbers, controller
        )
    return net.update(trainable).module


@eqx.filter_jit
def _step(
    trainable: Any,
    frozen: Any,
    moments: Any,
    state: Any,
    batch: Any,
    rate: Any,
    weight: Any,
    controller: AdaLoRAController,
) -> Any:
    def loss(trainable: Any) -> Any:
        model = eqx.combine(trainable, frozen)
        return _classifier.loss(model, batch) + weight * penalty(model)

    grads = eqx.filter_grad(loss)(trainable)
    updates, moments = ADAM.update(grads, moments)
    trainable = jax.tree.map(lambda w, u: w - rate * u, trainable, updates)
    if state is not None:
        trainable, state = controller.update(trainable, grads, state)
    return trainable, moments, state


def best(model: Any, way: Way, digits: Any, batches: Any, key: Any) -> Result:
    """The training that is best on the validation scans."""
    models = [train(model, way, batches, rate, key) for rate in RATES]
    scores = [_classifier.measure(merge_lora(model), digits) for model in models]
    score, best_model = max(zip(scores, models, strict=True), key=lambda pair: pair[0].order)
    report = lora_report(shrink(best_model))
    ranks = {row.path: row.rank or 0 for row in report}
    trainable = sum(row.trainable for row in report)
    return Result(score.target, trainable, tuple(ranks.get(name, 0) for name in LAYERS))


def show(results: dict[tuple[int, str], list[Result]], steps: int) -> None:
    """Print the table of the finished seeds."""
    columns = [("rank", "right"), ("way", "left"), ("parameters", "right")]
    columns += [("target %", "right"), (f"ranks of {', '.join(LAYERS)} (seed 0)", "left")]
    rows = [
        (
            f"{final}",
            name,
            f"{statistics.mean(result.trainable for result in of_seeds):,.0f}",
            _mean([100 * result.accuracy for result in of_seeds]),
            ", ".join(map(str, of_seeds[0].ranks)),
        )
        for (final, name), of_seeds in results.items()
    ]
    seeds = len(next(iter(results.values())))
    caption = f"{seeds} seeds, {steps} steps. Rates: {', '.join(map(str, RATES))}."
    Console(width=110).print(table("Digits of another domain", columns, rows, caption))


def _mean(values: list[float]) -> str:
    if len(values) == 1:
        return f"{values[0]:.1f}"
    error = statistics.stdev(values) / len(values) ** 0.5
    return f"{statistics.mean(values):.1f} ± {error:.1f}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run, and print the table after each seed."""
    parser = argparse.ArgumentParser(description="AdaLoRA and its allocator")
    parser.add_argument("--quick", action="store_true", help="train only to check that it runs")
    quick = parser.parse_args(arguments).quick
    epochs, seeds, finals = (4, 1, (2,)) if quick else (100, 5, (2, 8))
    results: dict[tuple[int, str], list[Result]] = {}
    for seed in range(seeds):
        digits = _data.load(seed)
        effort = _run.QUICK if quick else _run.FULL
        model = _run.pretrained(Console(quiet=True), digits, effort, seed)
        batches = list(_classifier.batches_of(digits.training, epochs=epochs, seed=seed))
        for final in finals:
            for way in ways(final):
                result = best(model, way, digits, batches, jax.random.key(seed))
                results.setdefault((final, way.name), []).append(result)
        show(results, len(batches))


if __name__ == "__main__":
    main()
