"""AdaLoRA with its allocator beside plain LoRA of the same final rank, on the digits of the demo.

    python -m benchmarks.adalora [--quick]

The model, the shift of domain and the 150 scans to adapt on are those of `jno-lora demo`. Each way
trains for the same steps at four learning rates; the validation scans choose the rate. AdaLoRA
starts with half as many directions again as LoRA has, in every layer, and ends with as many in the
mean. The scale is 1 for all. Accuracies are on 500 test scans of the new domain, as means over
seeds with the standard error of the mean; a seed decides the pretraining, the split and the noise.
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

from jno.lora import Net, lora_report, merge_lora, penalty, shrink
from jno.lora.extending import table
from jno_lora_compare._demo import _classifier, _data, _run
from jno_lora_zoo import AdaLoRAController

RATES = (1e-3, 3e-3, 1e-2, 3e-2)
PENALTY = 0.1
LAYERS = ("edges", "shapes", "hidden", "output")


class Way(NamedTuple):
    """A variant at a rank; with `target`, the mean rank that the allocator leaves."""

    name: str
    variant: str
    rank: int
    target: int | None = None
    penalty: float = 0.0


class Result(NamedTuple):
    """One training: what the validation scans say, the test accuracy, and the final ranks."""

    order: tuple[float, float]
    accuracy: float
    trainable: int
    ranks: tuple[int, ...]


def ways(rank: int) -> list[Way]:
    """What is compared at one final rank."""
    wide = rank * 3 // 2
    return [
        Way("LoRA", "lora", rank),
        Way("AdaLoRA's law alone", "adalora", rank),
        Way("AdaLoRA, allocator", "adalora", wide, rank),
        Way("AdaLoRA, allocator and penalty", "adalora", wide, rank, PENALTY),
    ]


def train(model: Any, way: Way, batches: Any, rate: float, key: Any) -> Any:
    """The adapted model after one step for each batch."""
    net = Net(model, key=key).freeze().lora(rank=way.rank, alpha=way.rank, wrapper=way.variant)
    steps = len(batches[0])
    controller = AdaLoRAController(
        target_rank=way.target or way.rank,
        warmup=steps // 10,
        final=steps // 3,
        total=steps,
        every=10,
    )
    trainable, frozen = net.partition()
    return net.update(_fit(trainable, frozen, batches, jnp.asarray(rate), controller, way)).module


@eqx.filter_jit
def _fit(
    trainable: Any, frozen: Any, batches: Any, rate: Any, controller: AdaLoRAController, way: Way
) -> Any:
    adam = optax.scale_by_adam()
    state = None if way.target is None else controller.init(trainable)

    def loss(trainable: Any, batch: Any) -> Any:
        model = eqx.combine(trainable, frozen)
        return _classifier.loss(model, batch) + way.penalty * penalty(model)

    def step(carry: Any, batch: Any) -> Any:
        trainable, moments, state = carry
        grads = eqx.filter_grad(loss)(trainable, batch)
        updates, moments = adam.update(grads, moments)
        trainable = jax.tree.map(lambda w, u: w - rate * u, trainable, updates)
        if state is not None:
            trainable, state = controller.update(trainable, grads, state)
        return (trainable, moments, state), None

    (trainable, _, _), _ = jax.lax.scan(step, (trainable, adam.init(trainable), state), batches)
    return trainable


def measure(model: Any, digits: Any) -> Result:
    """The scores of a trained model, made as small as it is."""
    small = shrink(model)
    score = _classifier.measure(merge_lora(small), digits)
    report = lora_report(small)
    ranks = {row.path: row.rank or 0 for row in report}
    own = sum(row.trainable for row in report)
    return Result(score.order, score.target, own, tuple(ranks.get(name, 0) for name in LAYERS))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run, and print the table."""
    parser = argparse.ArgumentParser(description="AdaLoRA and its allocator")
    parser.add_argument("--quick", action="store_true", help="so little that it means nothing")
    quick = parser.parse_args(arguments).quick
    epochs, seeds, finals = (4, 2, (2,)) if quick else (100, 5, (2, 4, 8))
    results: dict[tuple[int, str], list[Result]] = {}
    steps = 0
    for seed in range(seeds):
        digits = _data.load(seed)
        effort = _run.QUICK if quick else _run.FULL
        model = _run._pretrained(Console(quiet=True), digits, effort, seed)
        found = list(_classifier.batches_of(digits.training, epochs=epochs, seed=seed))
        batches = jax.tree.map(lambda *arrays: jnp.stack(arrays), *found)
        steps = len(found)
        for final in finals:
            for way in ways(final):
                tried = [
                    measure(train(model, way, batches, rate, jax.random.key(seed)), digits)
                    for rate in RATES
                ]
                best = max(tried, key=lambda result: result.order)
                results.setdefault((final, way.name), []).append(best)
    columns = [("rank", "right"), ("way", "left"), ("parameters", "right")]
    columns += [("target %", "right"), (f"ranks of {', '.join(LAYERS)} (seed 0)", "left")]
    rows = [
        (
            f"{final}",
            name,
            f"{statistics.mean(r.trainable for r in found):,.0f}",
            f"{100 * statistics.mean(r.accuracy for r in found):.1f} ± "
            f"{100 * statistics.stdev(r.accuracy for r in found) / len(found) ** 0.5:.1f}",
            ", ".join(map(str, found[0].ranks)),
        )
        for (final, name), found in results.items()
    ]
    caption = f"{seeds} seeds, {steps} steps. Rates: {', '.join(map(str, RATES))}."
    Console(width=110).print(table("Digits of another domain", columns, rows, caption))


if __name__ == "__main__":
    main()
