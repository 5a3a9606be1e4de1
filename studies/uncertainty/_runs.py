"""All runs of the study, each recorded as one line of a file."""

import pathlib
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jno.lora.optim import conjugate
from jno_lora_uncertainty import Calibrated, Ensemble, Folds, calibrate, folds, interval, predict

from .._families import FULL, Effort, relative_errors
from .._records import Record, append, read
from ._problems import PROBLEMS, Problem
from ._ways import ADAPTERS, MEMBERS, WAYS, Way

RESULTS = pathlib.Path(__file__).parents[1] / "results" / "uncertainty.jsonl"
KEY = ("problem", "way", "samples", "seed", "rate")
EFFORT = replace(FULL, samples=(8, 16, 32), seeds=5, rates=(0.3, 1.0, 3.0))


@dataclass(frozen=True)
class Plan:
    """The problems and the ways, and the effort for each."""

    effort: Effort = EFFORT
    problems: Sequence[Problem] = PROBLEMS
    ways: Sequence[Way] = WAYS


def run(path: pathlib.Path, plan: Plan, only: str = "") -> None:
    """Run the missing runs whose `problem/way/samples/seed` matches `only`."""
    jobs = [
        (problem, way, samples, seed)
        for problem in plan.problems
        for way in plan.ways
        if way.name == ADAPTERS or not problem.values
        for samples in plan.effort.samples
        for seed in range(plan.effort.seeds)
        if re.search(only, f"{problem.name}/{way.name}/{samples}/{seed}")
    ]
    if not jobs:
        raise SystemExit(f"--only {only!r} selects no problem/way/samples/seed.")
    done = {tuple(record[name] for name in KEY) for record in read(path)}
    with append(path) as write:
        for problem, way, samples, seed in jobs:
            for factor in plan.effort.rates:
                rate = float(f"{factor * way.rate:.3g}")
                key = problem.name, way.name, samples, seed, rate
                if key not in done:
                    scored = measured(plan.effort, problem, way, samples, seed, rate)
                    write(dict(zip(KEY, key, strict=True)) | scored)
            print(f"{problem.name}/{way.name}/{samples}/{seed}", flush=True)


def measured(
    effort: Effort, problem: Problem, way: Way, samples: int, seed: int, rate: float
) -> Record:
    """Train an ensemble, calibrate it on its folds, and score it on new simulations."""
    begin = time.process_time()
    x, y = problem.training(seed, samples)
    key = jax.random.key(seed)
    parts = folds(values=x[0]) if problem.values else folds(len(y), MEMBERS, key=key)
    ensemble = way.ensemble(problem, effort, seed, len(parts.rows))
    ensemble = trained(ensemble, (x, y), parts, effort, rate, key)
    calibrated = calibrate(ensemble, x, y, parts)
    constant = constant_width(ensemble, x, y, parts)
    trainable = jax.tree.leaves(ensemble.partition()[0])
    record = {
        "held_out_crps": float(calibrated.scales[0].crps),
        "held_out_coverage": float(calibrated.scales[0].coverage),
        **scores(calibrated, *problem.test(effort.test), constant, samples),
        "trained": sum(leaf.size for leaf in trainable) // ensemble.members,
        "seconds": round(time.process_time() - begin, 2),
    }
    return {name: float(f"{value:.5g}") for name, value in record.items()}


def trained(
    ensemble: Ensemble, data: Any, parts: Folds, effort: Effort, rate: float, key: Any
) -> Ensemble:
    """The ensemble after `effort.steps` steps of Adam, each on a random batch of each member."""
    decay = optax.cosine_decay_schedule(rate, effort.steps)
    optimiser = optax.chain(conjugate(), optax.adam(decay))
    size = min(effort.batch, parts.rows.shape[1])

    def loss(member: Any, batch: Any) -> Any:
        x, solutions = batch
        predicted = jax.vmap(lambda x: ensemble.call(member, x))(x)
        return jnp.mean(relative_errors(predicted, solutions))

    @eqx.filter_jit
    def train(trainable: Any, frozen: Any, data: Any, parts: Any) -> Any:
        def step(number: Any, carry: Any) -> Any:
            trainable, state = carry
            batch = parts.training(data, size=size, key=jax.random.fold_in(key, number))
            gradient = eqx.filter_grad(
                lambda t: Ensemble.loss(loss)(eqx.combine(t, frozen), batch)
            )(trainable)
            updates, state = optimiser.update(gradient, state, trainable)
            return eqx.apply_updates(trainable, updates), state

        start = trainable, optimiser.init(trainable)
        return jax.lax.fori_loop(0, effort.steps, step, start)[0]

    trainable, frozen = ensemble.partition()
    return ensemble.update(train(trainable, frozen, data, parts))


def scores(calibrated: Calibrated, x: Any, y: Any, constant: Any, samples: int) -> dict[str, float]:
    """Coverage of 90 % and CRPS on new simulations: calibrated, raw, and with a constant width."""

    @eqx.filter_jit
    def predicted(calibrated: Calibrated, x: Any) -> Any:
        return jax.vmap(lambda x: predict(calibrated, x))(x)

    mean, std = predicted(calibrated, x)
    ones, zeros = jnp.ones(()), jnp.zeros(())
    raw = eqx.tree_at(
        lambda c: (c.scales[0].spread, c.scales[0].constant), calibrated, (ones, zeros)
    )
    stds = {"": std, "raw_": predicted(raw, x).std, "constant_": jnp.full_like(std, constant)}
    content = {"error": jnp.mean(relative_errors(mean, y))}
    for name, width in stds.items():
        content[f"{name}coverage"] = jnp.mean(jnp.abs(y - mean) <= 1.6449 * width)
        content[f"{name}crps"] = jnp.mean(crps(y - mean, width))
    ranks = [np.argsort(np.argsort(np.ravel(values))) for values in (jnp.abs(y - mean), std)]
    content["rank_correlation"] = np.corrcoef(*ranks)[0, 1]
    if samples >= 9:
        between = eqx.filter_jit(jax.vmap(lambda x: interval(calibrated, x, conformal=True)))
        lower, upper = between(x)
        content["conformal_coverage"] = jnp.mean((lower <= y) & (y <= upper))
    return {name: float(value) for name, value in content.items()}


def crps(residual: Any, std: Any) -> Any:
    """The continuous ranked probability score of a Gaussian."""
    u = residual / jnp.maximum(std, 1e-12)
    norm = jax.scipy.stats.norm
    return std * (u * (2 * norm.cdf(u) - 1) + 2 * norm.pdf(u) - 1 / jnp.sqrt(jnp.pi))


def constant_width(ensemble: Ensemble, x: Any, y: Any, parts: Folds) -> Any:
    """The root mean square of the held-out residuals."""
    outputs = ensemble.each(lambda m: jax.vmap(lambda x: ensemble.call(m, x))(x))
    held_out = outputs[jnp.argmax(parts.held_out, axis=0), jnp.arange(len(y))]
    return jnp.sqrt(jnp.mean((y - held_out) ** 2))
