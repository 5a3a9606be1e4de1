"""Optimisers that know adapters beside plain optimisers, on the demo's digits (extra `demo`).

    python -m benchmarks.optimisers [--quick] [--seeds 5]

A seed decides the pretrained model, the split of the scans, their noise, the adapters' start and
the order of the batches. Each optimiser trains LoRA or LoRA-FA of rank 8 at every rate of a grid;
the validation scans choose the rate, anew for each seed. The table shows, as means over the seeds:

* **target**: the accuracy on 500 test scans of the target domain, with its standard deviation.
* **loss**: the mean training loss in the last epoch.
* **epochs**: how many epochs it takes until an epoch's mean training loss is as low as in the last
  epoch of Adam with the same adapter; `-` if no seed gets there, a count of seeds if only some do.

A second table has the cost of a step over a step of Adam: four `Linear(1024, 1024)` with ReLU
between them, batch 256, rank 16. Processor time, as ratios within rounds in which every optimiser
has its turn in random order: medians and quartiles.
"""

import argparse
import random
import statistics
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.console import Console

from jno.lora import Net
from jno_lora_demos.digits import _candidates, _classifier, _data, _run
from jno_lora_train import Trainer
from jno_lora_train.optim import lora_fa, lora_plus, scale_by_riemannian

from ._ratios import per_round
from ._tables import spread

# Learning rates of the adaptive optimisers, and of gradient descent.
ADAM = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1)
SGD = (3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0, 3.0)
# A small `B` makes the preconditioned gradients of `A` large.
PRECONDITIONED_SGD = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)


class Candidate(NamedTuple):
    """An optimiser, made from a rate and the adapted model, on adapters of a variant."""

    name: str
    variant: str
    make: Callable[[Any, Any], optax.GradientTransformation]
    rates: tuple[float, ...]


CANDIDATES = (
    Candidate("Adam", "lora", lambda rate, _: optax.adam(rate), ADAM),
    Candidate("LoRA+, Adam", "lora", lambda rate, _: lora_plus(optax.adam(rate)), ADAM),
    Candidate(
        "Riemannian, Adam",
        "lora",
        lambda rate, _: optax.chain(scale_by_riemannian(), optax.adam(rate)),
        ADAM,
    ),
    Candidate("SGD", "lora", lambda rate, _: optax.sgd(rate), SGD),
    Candidate("LoRA+, SGD", "lora", lambda rate, _: lora_plus(optax.sgd(rate)), SGD),
    Candidate(
        "Riemannian, SGD",
        "lora",
        lambda rate, _: optax.chain(scale_by_riemannian(), optax.sgd(rate)),
        PRECONDITIONED_SGD,
    ),
    Candidate("Adam", "lora-fa", lambda rate, _: optax.adam(rate), ADAM),
    Candidate(
        "LoRA-FA's, Adam",
        "lora-fa",
        lambda rate, model: optax.chain(lora_fa(model), optax.adam(rate)),
        ADAM,
    ),
    Candidate("SGD", "lora-fa", lambda rate, _: optax.sgd(rate), SGD),
    Candidate(
        "LoRA-FA's, SGD",
        "lora-fa",
        lambda rate, model: optax.chain(lora_fa(model), optax.sgd(rate)),
        SGD,
    ),
)


class Outcome(NamedTuple):
    """A candidate with one seed, at the rate that the validation scans chose."""

    rate: float
    score: _classifier.Score
    losses: np.ndarray  # the mean training loss of each epoch


def main() -> None:
    """Train everything and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--quick", action="store_true", help="two epochs and two rates, to check that it runs"
    )
    parser.add_argument("--seeds", type=int, default=5)
    arguments = parser.parse_args()
    effort = _run.QUICK._replace(epochs=2) if arguments.quick else _run.FULL
    outcomes: dict[Candidate, list[Outcome]] = {candidate: [] for candidate in CANDIDATES}
    for seed in range(1 if arguments.quick else arguments.seeds):
        digits = _data.load(seed)
        model = _run.pretrained(Console(quiet=True), digits, effort, seed)
        batches = list(_classifier.batches_of(digits.training, epochs=effort.epochs, seed=seed))
        for candidate, done in outcomes.items():
            rates = candidate.rates[2:4] if arguments.quick else candidate.rates
            trials = trained(candidate, model, batches, digits, rates, effort.epochs, seed)
            done.append(max(trials, key=lambda outcome: outcome.score.order))
    print("\n".join(table(outcomes)))
    print("\n".join(costs(rounds=2 if arguments.quick else 21)))


def trained(
    candidate: Candidate,
    model: Any,
    batches: list[Any],
    digits: _data.Digits,
    rates: Iterable[float],
    epochs: int,
    seed: int,
) -> list[Outcome]:
    """The outcome at every rate. The step is compiled once, with the rate in its state."""
    net = Net(model, key=jax.random.key(seed)).freeze()
    net.lora(_candidates.RANK, _candidates.ALPHA, wrapper=candidate.variant)
    adapted, (start, frozen) = net.module, net.partition()
    make = optax.inject_hyperparams(lambda rate: candidate.make(rate, adapted))
    trainer = Trainer(_classifier.loss, make(rate=1.0))
    trials: list[Outcome] = []
    for rate in rates:
        state = trainer.optimizer.init(start)
        state = state._replace(hyperparams={"rate": jnp.asarray(rate, jnp.float32)})
        fit = trainer.fit(start, frozen, batches, state=state)
        score = _classifier.measure(net.update(fit.trainable).module, digits)
        losses = np.reshape(fit.losses, (epochs, -1)).mean(axis=1)
        if np.isfinite(losses).all():
            trials.append(Outcome(rate, score, losses))
    return trials


def table(outcomes: dict[Candidate, list[Outcome]]) -> Iterable[str]:
    """The lines of a table in Markdown."""
    yield "| adapter | optimiser | target, % | loss | epochs | rates chosen |"
    yield "|---|---|---|---|---|---|"
    for candidate, done in outcomes.items():
        adam = next(
            of_adam
            for reference, of_adam in outcomes.items()
            if (reference.name, reference.variant) == ("Adam", candidate.variant)
        )
        targets = [100 * outcome.score.target for outcome in done]
        spread = f" ± {statistics.stdev(targets):.1f}" if len(targets) > 1 else ""
        loss = statistics.fmean(outcome.losses[-1] for outcome in done)
        rates = sorted({outcome.rate for outcome in done})
        yield (
            f"| {candidate.variant} | {candidate.name} | {statistics.fmean(targets):.1f}{spread} "
            f"| {loss:.4f} | {epochs_to_reach(done, adam)} "
            f"| {', '.join(f'{rate:g}' for rate in rates)} |"
        )


def epochs_to_reach(done: list[Outcome], adam: list[Outcome]) -> str:
    """The mean number of epochs until the loss is as low as in Adam's last epoch, by seed."""
    reached = [
        int(np.argmax(outcome.losses <= of_adam.losses[-1])) + 1
        for outcome, of_adam in zip(done, adam, strict=True)
        if (outcome.losses <= of_adam.losses[-1]).any()
    ]
    if not reached:
        return "-"
    seeds = f" ({len(reached)} of {len(done)})" if len(reached) < len(done) else ""
    return f"{statistics.fmean(reached):.1f}{seeds}"


def costs(rounds: int) -> Iterable[str]:
    """The lines of the second table."""
    keys = jax.random.split(jax.random.key(0), 4)
    model = eqx.nn.Sequential(
        [
            layer
            for key in keys
            for layer in (eqx.nn.Linear(1024, 1024, key=key), eqx.nn.Lambda(jax.nn.relu))
        ]
    )
    batch = jax.random.normal(jax.random.key(1), (256, 1024))

    def loss(model: Any, batch: Any) -> Any:
        return jnp.mean(jax.vmap(model)(batch) ** 2)

    yield "| adapter | optimiser | a step / Adam |"
    yield "|---|---|---|"
    for variant in ("lora", "lora-fa"):
        net = Net(model).freeze().lora(16, wrapper=variant)
        start, frozen = net.partition()
        sides = {c.name: c for c in CANDIDATES if c.variant == variant and "Adam" in c.name}
        trainers = {n: Trainer(loss, c.make(1e-3, net.module)) for n, c in sides.items()}
        runs = {name: trainer.start(start) for name, trainer in trainers.items()}
        measured: list[dict[str, float]] = []
        for _ in range(rounds + 1):
            seconds: dict[str, float] = {}
            for name in random.sample(list(trainers), len(trainers)):
                begin = time.process_time()
                for _ in range(5):
                    runs[name], value = trainers[name].step(runs[name], frozen, batch)
                    jax.block_until_ready(value)
                seconds[name] = time.process_time() - begin
            measured.append(seconds)
        for name in trainers:
            if name != "Adam":
                ratio = per_round(measured[1:], name)["Adam"]  # the first round compiles
                yield f"| {variant} | {name} | {spread(ratio)} |"


if __name__ == "__main__":
    main()
