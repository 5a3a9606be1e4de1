"""All runs of the study, each recorded as one line of a file."""

import functools
import pathlib
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jno_lora_train.optim import conjugate
from jno_lora_uncertainty import Calibrated, Ensemble, Folds, calibrate, fit_scales, folds, predict

from .._families import FULL, Effort, relative_errors
from .._records import Record, append, read
from .._search import best_rates
from ._distances import distances
from ._problems import PROBLEMS, Problem
from ._spreads import Spread, dropout, masked, outputs
from ._ways import ADAPTERS, WAYS, Way

RESULTS = pathlib.Path(__file__).parents[1] / "results" / "uncertainty.jsonl"
KEY = ("problem", "way", "samples", "seed", "rate")
EFFORT = replace(FULL, samples=(8, 32, 16), seeds=5)
_SNAPSHOTS, _LEVEL = 10, 1.6449  # of the last quarter of the steps; of intervals of 90 %


class Job(NamedTuple):
    """One way on one problem, with a number of simulations and a seed."""

    problem: Problem
    effort: Effort
    way: Way
    samples: int
    seed: int

    def __str__(self) -> str:
        return f"{self.problem.name}/{self.way.name}/{self.samples}/{self.seed}"


@dataclass(frozen=True)
class Plan:
    """The problems and the ways, and the effort for each."""

    effort: Effort = EFFORT
    problems: Sequence[Problem] = PROBLEMS
    ways: Sequence[Way] = WAYS

    def jobs(self) -> Iterator[Job]:
        """All jobs, the first seed of all problems first. The first seed finds the rates."""
        for seed in range(self.effort.seeds):
            for problem in self.problems:
                effort = replace(self.effort, **problem.effort)
                ways = [way for way in self.ways if re.search(problem.ways, way.name)]
                for way in ways if seed < effort.seeds else ():
                    for samples in way.samples or effort.samples:
                        yield Job(problem, effort, way, samples, seed)


def run(path: pathlib.Path, plan: Plan, only: str = "") -> None:
    """Run the missing runs whose `problem/way/samples/seed` matches `only`."""
    done = {tuple(record[name] for name in KEY): record for record in read(path)}
    with append(path) as write:

        def recorded(job: Job, seed: int, rate: float) -> Record:
            key = job.problem.name, job.way.name, job.samples, seed, rate
            if key not in done:
                scored = measured(job._replace(seed=seed), rate)
                done[key] = dict(zip(KEY, key, strict=True)) | scored
                write(done[key])
            return done[key]

        jobs = [job for job in plan.jobs() if re.search(only, str(job))]
        for job in jobs:
            rate = job.way.rate
            if len(job.effort.rates) > 1:
                evaluate = functools.partial(recorded, job, 0)
                crps_of = lambda r, _, e=evaluate: e(r)["held_out_crps"]  # noqa: E731
                rate, _ = best_rates(rate, 1.0, crps_of, extensions=4)
            recorded(job, job.seed, rate)
            print(job, flush=True)
            jax.clear_caches()  # each program takes memory maps, which a process has few of
    if not jobs:
        raise SystemExit(f"--only {only!r} selects no problem/way/samples/seed.")


def measured(job: Job, rate: float) -> Record:
    """Train models on folds, calibrate a spread on them, and score it on new simulations."""
    problem, effort, way, samples, seed = job
    begin = time.process_time()
    data = problem.training(seed, samples)
    key = jax.random.key(seed)
    x, y = data
    parts = folds(values=x[0]) if problem.values else folds(len(y), way.members, key=key)
    if way.spread is not None:
        parts = with_all(parts)
    ensemble = way.ensemble(problem, effort, seed, len(parts.rows))
    ensemble, snapshots = trained(ensemble, data, parts, effort, rate, key, way.spread is dropout)
    sets = {"": problem.test(effort.test)}
    if way.name == ADAPTERS and not problem.effort:
        sets |= problem.unlike(effort.test)
    record: dict[str, Any] = {}
    if way.spread is None:
        calibrated = calibrate(ensemble, x, y, parts)
        record["held_out_crps"] = calibrated.scales[0].crps
        record["held_out_coverage"] = calibrated.scales[0].coverage
        found = {name: of_members(calibrated, of[0]) for name, of in sets.items()}
        by_new = calibrate(ensemble, x, y, parts, new_x=problem.new_inputs(effort.test // 2))
        mean, std, _ = of_members(by_new, sets[""][0])
        record["new_x_coverage"] = coverage(mean, std, sets[""][1])
        record["new_x_crps"] = jnp.mean(crps(sets[""][1] - mean, std))
    else:
        crps_of, found = of_spread(way.spread, ensemble, snapshots, data, parts, sets, key)
        record["held_out_crps"] = crps_of
    residual = y - outputs(ensemble, x)[jnp.argmax(parts.held_out, axis=0), jnp.arange(len(y))]
    record |= scores(*found[""], sets[""][1], residual)
    if len(sets) > 1:
        record |= distances(ensemble, x, sets, found)
    leaves = jax.tree.leaves(ensemble.partition()[0])
    record["trained"] = sum(leaf.size for leaf in leaves) // ensemble.members
    record["seconds"] = round(time.process_time() - begin, 2)
    return {name: float(f"{value:.5g}") for name, value in record.items()}


def with_all(parts: Folds) -> Folds:
    """The folds, and a last member that sees all examples."""
    n = parts.held_out.shape[1]
    held_out = jnp.concatenate([parts.held_out, jnp.zeros((1, n), bool)])
    rows = np.stack([np.resize(np.unique(of_member), n) for of_member in parts.rows])
    return Folds(held_out, jnp.concatenate([jnp.asarray(rows), jnp.arange(n)[None]]))


def trained(
    ensemble: Ensemble,
    data: Any,
    parts: Folds,
    effort: Effort,
    rate: float,
    key: Any,
    drops: bool = False,
) -> tuple[Ensemble, Any]:
    """The ensemble after `effort.steps` steps of Adam, and snapshots of its last quarter.

    Each step has a random batch of each member, and with `drops`, a mask of the trained numbers.
    """
    decay = optax.cosine_decay_schedule(1.0, effort.steps)
    optimiser = optax.chain(conjugate(), optax.adam(decay))
    size = min(effort.batch, parts.rows.shape[1])
    between = max(1, effort.steps // 4 // _SNAPSHOTS)

    def loss(member: Any, batch: Any) -> Any:
        x, solutions = batch
        predicted = jax.vmap(lambda x: ensemble.call(member, x))(x)
        return jnp.mean(relative_errors(predicted, solutions))

    # The rate and the key are arguments, so that all runs of a way share a program.
    @eqx.filter_jit
    def train(trainable: Any, frozen: Any, data: Any, parts: Any, rate: Any, key: Any) -> Any:
        def step(number: Any, carry: Any) -> Any:
            trainable, state = carry
            step_key = jax.random.fold_in(key, number)
            batch = parts.training(data, size=size, key=step_key)

            def total(trainable: Any) -> Any:
                kept = masked(trainable, step_key) if drops else trainable
                return Ensemble.loss(loss)(eqx.combine(kept, frozen), batch)

            updates, state = optimiser.update(eqx.filter_grad(total)(trainable), state, trainable)
            updates = jax.tree.map(lambda u: rate.astype(u.dtype) * u, updates)
            return eqx.apply_updates(trainable, updates), state

        def quarter(carry: Any, start: Any) -> Any:
            carry = jax.lax.fori_loop(start, start + between, step, carry)
            return carry, carry[0]

        first = max(0, effort.steps - between * _SNAPSHOTS)
        carry = jax.lax.fori_loop(0, first, step, (trainable, optimiser.init(trainable)))
        starts = first + between * jnp.arange(_SNAPSHOTS)
        (last, _), snapshots = jax.lax.scan(quarter, carry, starts)
        return last, snapshots

    trainable, frozen = ensemble.partition()
    last, snapshots = train(trainable, frozen, data, parts, jnp.asarray(rate), key)
    return ensemble.update(last), snapshots


@eqx.filter_jit
def of_members(calibrated: Calibrated, x: Any) -> tuple[Any, Any, Any]:
    """The mean, the calibrated standard deviation and the raw one."""
    mean, std = jax.vmap(lambda x: predict(calibrated, x))(x)
    return mean, std, jnp.std(outputs(calibrated.ensemble, x), axis=0)


def of_spread(
    spread: Spread,
    ensemble: Ensemble,
    snapshots: Any,
    data: Any,
    parts: Folds,
    sets: Mapping[str, Any],
    key: Any,
) -> tuple[float, dict[str, tuple[Any, Any, Any]]]:
    """The held-out CRPS, and means and deviations on new data, with the best prior."""
    seen = parts.training(data)[0]
    compiled = eqx.filter_jit(lambda x: spread(ensemble, snapshots, seen, x, key))
    x, y = data
    mean, variances = compiled(x)
    chosen = jnp.argmax(parts.held_out, axis=0), jnp.arange(len(y))
    residual = y - mean[chosen]
    tried: list[tuple[float, int, Any, Any]] = []
    for number, variance in enumerate(variances):
        a, b = fit_scales(variance[chosen], residual)
        score = jnp.mean(crps(residual, jnp.sqrt(a**2 * variance[chosen] + b**2)))
        tried.append((float(score), number, a, b))
    score, number, a, b = min(tried)
    found: dict[str, tuple[Any, Any, Any]] = {}
    for name, (x, _) in sets.items():
        mean, variances = compiled(x)
        variance = variances[number, -1]
        found[name] = mean[-1], jnp.sqrt(a**2 * variance + b**2), jnp.sqrt(variance)
    return score, found


def scores(mean: Any, std: Any, raw: Any, y: Any, residual: Any) -> dict[str, Any]:
    """Coverage of 90 % and CRPS on new simulations: calibrated, raw, and with a constant width.

    The constant width is fitted to the held-out residuals as all scales are, and for the conformal
    interval, it is their quantile.
    """
    content: dict[str, Any] = {"error": jnp.mean(relative_errors(mean, y))}
    constant = jnp.full_like(std, fit_scales(jnp.zeros_like(residual), residual)[1])
    for name, width in {"": std, "raw_": raw, "constant_": constant}.items():
        content[f"{name}coverage"] = coverage(mean, width, y)
        content[f"{name}crps"] = jnp.mean(crps(y - mean, width))
    quantile = jnp.quantile(jnp.abs(residual), min(1.0, 0.9 * (1 + 1 / len(residual))))
    content["conformal_coverage"] = jnp.mean(jnp.abs(y - mean) <= quantile)
    ranks = [np.argsort(np.argsort(np.ravel(values))) for values in (jnp.abs(y - mean), std)]
    content["rank_correlation"] = np.corrcoef(np.stack(ranks))[0, 1] if np.ptp(std) else 0.0
    return content


def coverage(mean: Any, std: Any, y: Any) -> Any:
    """The fraction of the points inside Gaussian intervals of 90 %."""
    return jnp.mean(jnp.abs(y - mean) <= _LEVEL * std)


def crps(residual: Any, std: Any) -> Any:
    """The continuous ranked probability score of a Gaussian."""
    std = jnp.maximum(std, 1e-12)
    u = residual / std
    norm = jax.scipy.stats.norm
    return std * (u * (2 * norm.cdf(u) - 1) + 2 * norm.pdf(u) - 1 / jnp.sqrt(jnp.pi))
