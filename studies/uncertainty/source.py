"""Do the error bars of conditional adapters hold at the pretrained value, and near it?

python -m studies.uncertainty.source            # the runs that the file of results lacks
python -m studies.uncertainty.source --report   # the table of docs/evidence/uncertainty.md

At the source, all members are the pretrained model, so that their spread is zero. Two problems, a
conditional ensemble with a fold for each value of the parameter, with and without `film`: how many
points do intervals of 90 % hold, calibrated without and with data of the source?
"""

import functools
import itertools
import pathlib
import re
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from jno.lora import Net
from jno_lora_conditional import Conditional, Powers, at
from jno_lora_foundax import CPSpectral, ModeWeights
from jno_lora_train.optim import conjugate
from jno_lora_uncertainty import Ensemble, Scales, calibrate, folds

from .. import _solvers as solvers
from .._command import command
from .._families import relative_errors
from .._pages import DOCS, fill
from .._records import Record, append, read
from ._runs import coverage, crps
from ._spreads import outputs

RESULTS = pathlib.Path(__file__).parents[1] / "results" / "uncertainty-source.jsonl"
KEY = ("problem", "film", "seed")
POINTS = 32
WAYS = {"before": "without", "after": "with"}


class Spectral(eqx.Module):
    """A layer with a complex matrix for each mode, and one for each point."""

    modes: Array  # (modes, in, out)
    mix: eqx.nn.Linear

    def __init__(self, width: int, modes: int, key: Array):
        of_modes, of_mix = jax.random.split(key)
        self.modes = jax.random.normal(of_modes, (modes, width, width), complex) / width
        self.mix = eqx.nn.Linear(width, width, key=of_mix)

    def __call__(self, x: Array) -> Array:
        """`(points, width)` to `(points, width)`."""
        modes = jnp.fft.rfft(x, axis=0)[: len(self.modes)]
        modes = jnp.einsum("xi,xio->xo", modes, self.modes)
        return jnp.fft.irfft(modes, len(x), axis=0) + jax.vmap(self.mix)(x)


class Operator(eqx.Module):
    """A small Fourier neural operator."""

    lift: eqx.nn.Linear
    layers: list[Spectral]
    project: eqx.nn.Linear

    def __init__(self, key: Array, width: int = 16, modes: int = 10, depth: int = 3):
        keys = jax.random.split(key, depth + 2)
        self.lift = eqx.nn.Linear(1, width, key=keys[0])
        self.project = eqx.nn.Linear(width, 1, key=keys[1])
        self.layers = [Spectral(width, modes, key) for key in keys[2:]]

    def __call__(self, field: Array) -> Array:
        """The solution of a field."""
        x = jax.vmap(self.lift)(field[:, None])
        for layer in self.layers:
            x = x + jax.nn.gelu(layer(x))
        return jax.vmap(self.project)(x)[:, 0]


class CPModes(CPSpectral):
    """CP for `Spectral`."""

    @classmethod
    def mode_weights(cls, leaf: Any) -> Any:
        """The axes of the matrices."""
        if isinstance(leaf, Spectral):
            return {"modes": ModeWeights(("modes",), axes="xio")}
        return None


@functools.partial(jax.jit, static_argnums=1)
def _heat(key: Array, number: int, nu: Any) -> tuple[Array, Array]:
    """The simulations of docs/conditional.md."""
    k = jnp.arange(1.0, 5.0)
    angle = k[:, None] * jnp.linspace(0, 2 * jnp.pi, POINTS, endpoint=False)
    waves = jnp.concatenate([jnp.cos(angle), jnp.sin(angle)])
    sizes = jax.random.normal(key, (number, 8))
    return sizes @ waves, (sizes * jnp.tile(jnp.exp(-nu * k**2), 2)) @ waves


@functools.partial(jax.jit, static_argnums=1)
def _kdv(key: Array, number: int, dispersion: Any) -> tuple[Array, Array]:
    fields = 0.5 * solvers.random_fields(key, number, 2 * POINTS, 1, modes=3)
    solutions = solvers.korteweg_de_vries(fields, dispersion=dispersion)
    return fields[:, ::2], solutions[:, ::2]


@dataclass(frozen=True)
class Problem:
    """An equation, a model pretrained at the source, values to adapt it to, and values to test."""

    name: str
    simulate: Callable[[Array, int, Any], tuple[Array, Array]]
    make: Callable[[Array], Any]
    rate: float  # of the pretraining
    adapters: tuple[tuple[Any, int], ...]  # and their ranks
    source: float
    values: tuple[float, ...]
    test: tuple[float, ...]


PROBLEMS = (
    Problem(
        "heat equation",
        _heat,
        lambda key: eqx.nn.MLP(POINTS, POINTS, 64, 1, jnp.tanh, key=key),
        1e-2,
        (("lora", 4),),
        0.1,
        (0.08, 0.06, 0.045, 0.03),
        (0.1, 0.0995, 0.095, 0.09, 0.08, 0.07, 0.052, 0.0375, 0.03),
    ),
    Problem(
        "KdV equation",
        _kdv,
        Operator,
        5e-3,
        ((CPModes, 4), ("lora", 2)),
        0.05,
        (0.047, 0.044, 0.0405, 0.037),
        (0.05, 0.0499, 0.0495, 0.049, 0.048, 0.0455, 0.042, 0.039, 0.037),
    ),
)


@dataclass(frozen=True)
class Plan:
    """The effort: simulations of the pretraining, of each value, of the source and of each test."""

    pretraining: int = 256
    samples: int = 16
    source: int = 64
    test: int = 128
    steps: int = 300
    seeds: int = 5


def run(path: pathlib.Path, plan: Plan, only: str = "") -> None:
    """Run the missing runs whose `problem/film/seed` matches `only`."""
    jobs = [
        (problem, film, seed)
        for problem in PROBLEMS
        for film in (False, True)
        for seed in range(plan.seeds)
        if re.search(only, f"{problem.name}/{'film' if film else 'plain'}/{seed}")
    ]
    if not jobs:
        raise SystemExit(f"--only {only!r} selects no problem/film/seed.")
    done = {tuple(record[name] for name in KEY) for record in read(path)}
    with append(path) as write:
        for problem, film, seed in jobs:
            key = problem.name, film, seed
            if key not in done:
                write(dict(zip(KEY, key, strict=True)) | measured(problem, plan, film, seed))
                print(*key, flush=True)


def measured(problem: Problem, plan: Plan, film: bool, seed: int) -> Record:
    """Train an ensemble, calibrate it without and with data of the source, and test both."""
    begin = time.process_time()
    model = _pretrained(problem, plan)
    draws = _draws(problem, seed)
    data = [draws(plan.samples, value) for value in problem.values]
    x, y = (jnp.concatenate(part) for part in zip(*data, strict=True))
    z = jnp.repeat(jnp.asarray(problem.values), plan.samples)
    parts = folds(values=z)
    basis = Powers(problem.source, abs(problem.values[-1] - problem.source))

    def make(key: Array) -> Conditional:
        specs = [{"wrapper": wrapper, "rank": rank} for wrapper, rank in problem.adapters]
        return Conditional(Net(model, key=key).freeze().lora(specs=specs), basis, film=film)

    def loss(member: Conditional, batch: Any) -> Array:
        (z, fields), solutions = batch
        predicted = jax.vmap(lambda z, field: at(member, z)(field))(z, fields)
        return jnp.mean(relative_errors(predicted, solutions))

    ensemble = Ensemble(make, len(problem.values), key=jax.random.key(seed))
    trainable, frozen = ensemble.partition()
    batch = parts.training(((z, x), y))
    total = Ensemble.loss(loss)
    trained = _trained(trainable, lambda t: total(eqx.combine(t, frozen), batch), plan.steps, 1e-2)
    ensemble = ensemble.update(trained)
    there = draws(plan.source, problem.source)
    tests = [(value, *draws(plan.test, value)) for value in problem.test]
    record: Record = {"values": problem.test}
    for way, source in {"before": None, "after": there}.items():
        (scales,) = calibrate(ensemble, (z, x), y, parts, source=source).scales
        found = [_scores(ensemble, scales, *test) for test in tests]
        record[way] = [round(100 * float(coverage), 1) for coverage, _ in found]
        record[f"{way}_crps"] = float(f"{sum(crps for _, crps in found) / len(found):.4g}")
    return record | {"seconds": round(time.process_time() - begin, 1)}


@eqx.filter_jit
def _scores(
    ensemble: Ensemble, scales: Scales, value: Any, fields: Array, solutions: Array
) -> tuple[Array, Array]:
    """The coverage and the CRPS of the widths of `scales`, also where `predict` refuses a width."""
    found = outputs(ensemble, (jnp.broadcast_to(value, len(fields)), fields))
    mean, std = jnp.mean(found, axis=0), scales.std(jnp.var(found, axis=0))
    return coverage(mean, std, solutions), jnp.mean(crps(solutions - mean, std))


def _draws(problem: Problem, seed: int) -> Callable[[int, float], tuple[Array, Array]]:
    """A function that draws new simulations with each call."""
    numbers = itertools.count()

    def draw(number: int, value: float) -> tuple[Array, Array]:
        key = jax.random.fold_in(jax.random.key(2028 + seed), next(numbers))
        return problem.simulate(key, number, value)

    return draw


@functools.cache
def _pretrained(problem: Problem, plan: Plan) -> Any:
    """The model, trained on simulations at the source."""
    fields, solutions = problem.simulate(jax.random.key(1), plan.pretraining, problem.source)
    arrays, static = eqx.partition(problem.make(jax.random.key(0)), eqx.is_inexact_array)

    def loss(arrays: Any) -> Array:
        gap = jax.vmap(eqx.combine(arrays, static))(fields) - solutions
        return jnp.sqrt(jnp.sum(gap**2) / jnp.sum(solutions**2))

    return eqx.combine(_trained(arrays, loss, plan.steps, problem.rate), static)


def _trained(trainable: Any, loss: Callable[[Any], Array], steps: int, rate: float) -> Any:
    """Arrays after some steps of Adam, whose rate falls to zero."""
    schedule = optax.cosine_decay_schedule(rate, steps)
    optimiser = optax.chain(conjugate(), optax.adam(schedule))

    def step(carry: Any, _: None) -> Any:
        trainable, state = carry
        updates, state = optimiser.update(jax.grad(loss)(trainable), state, trainable)
        return (optax.apply_updates(trainable, updates), state), None

    @jax.jit
    def run(trainable: Any) -> Any:
        return jax.lax.scan(step, (trainable, optimiser.init(trainable)), length=steps)[0][0]

    return run(trainable)


def write_page(results: pathlib.Path, docs: pathlib.Path = DOCS) -> pathlib.Path:
    """Fill the section of the page, and print it."""
    records = read(results)
    lines: list[str] = []
    for problem in PROBLEMS:
        of_problem = [record for record in records if record["problem"] == problem.name]
        if of_problem:
            kinds = {problem.source: " (source)"} | dict.fromkeys(problem.values, " (training)")
            head = (problem.name, *(f"{value}{kinds.get(value, '')}" for value in problem.test))
            rows = [head, ("---",) * len(head)]
            for film, way in itertools.product((False, True), WAYS):
                runs = [record[way] for record in of_problem if record["film"] == film]
                means = [f"{statistics.mean(numbers):.0f}" for numbers in zip(*runs, strict=True)]
                rows.append((f"{WAYS[way]}{', film' if film else ''}", *means))
            lines += [*(f"| {' | '.join(cells)} |" for cells in rows), ""]
    if lines:
        after = [number for record in records for number in record["after"]]
        lines.append(f"Single runs with `source`: {min(after):.0f} to {max(after):.0f} %.")
    section = "\n".join(lines or ["Not run yet: `python -m studies.uncertainty.source`."]) + "\n"
    print(section, end="")
    page = docs / "uncertainty.md"
    fill(page, {"source": section})
    return page


def main(arguments: list[str] | None = None) -> None:
    """The command `python -m studies.uncertainty.source`."""
    command(
        "uncertainty.source",
        "problem/film/seed",
        arguments,
        run=run,
        plans=(Plan(), Plan(16, 4, 8, 8, 2, 1)),
        results=RESULTS,
        write_page=write_page,
    )


if __name__ == "__main__":
    main()
