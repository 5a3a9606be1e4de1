"""All runs of the study, in order of importance, each recorded as one line of a file."""

import functools
import itertools
import pathlib
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from .._records import append, read
from .._training import fine_tune
from ._crystals import padded
from ._force_field import ForceField
from ._frames import Frames, absolute_error, alloys, errors, misfit, predictions, shifted
from ._pretraining import CUTOFF, RECIPE, Recipe, graphs_of, source_of
from ._teacher import labels
from ._ways import WAYS, Way, number_of

RESULTS = pathlib.Path(__file__).parents[1] / "results" / "equivariant.jsonl"
RATES = (1e-3, 3e-3, 1e-2)  # which are tried first
KEY = ("way", "frames", "seed", "rate")  # the name of a run
NONE = "energies of the atoms alone"  # before training
FACTOR = 3.0  # from a rate to the next


@dataclass(frozen=True)
class Effort:
    """How much is computed: the full study, or just enough to see that everything runs."""

    recipe: Recipe = RECIPE
    frames: Sequence[int] = (20, 10, 50)
    validation: int = 24
    test: int = 24
    seeds: int = 3
    steps: int = 240
    every: int = 40  # steps between validations
    patience: int = 6  # validations
    extensions: int = 5  # of the rates, while the best is the lowest or the highest


FULL = Effort()
_SMALL = Recipe(("4x0e", "4x0e+2x1e", "4x0e"), (2, 3), 1, 1, 1, 1, from_sevennet=False)
QUICK = Effort(_SMALL, (2,), 1, 1, 1, 2, 1, 2, 0)


def run(path: pathlib.Path, effort: Effort, only: str = "") -> None:
    """Run the missing runs that match `only`, and append to `path`.

    The first seed searches the rate of each way and number of frames, which all seeds use.
    """
    done = {tuple(record[name] for name in KEY): record for record in read(path)}
    ways = {f"{way.name}/{frames}": (way, frames) for frames in effort.frames for way in WAYS}
    names = [name for name in ways if re.search(only, name)]
    if not names:
        raise SystemExit(f"--only {only!r} selects no run.")
    study = _Prepared(effort)
    with append(path) as write:

        def record(way: str, frames: int, seed: int, rate: float, run: Callable[[], Any]) -> Any:
            key = (way, frames, seed, rate)
            if key not in done:
                done[key] = dict(zip(KEY, key, strict=True)) | run()
                write(done[key])
            return done[key]

        for seed, name in itertools.product(range(effort.seeds), names):
            print(f"seed {seed}, {name}", flush=True)
            way, frames = ways[name]
            record(NONE, frames, seed, 0.0, lambda f=frames, s=seed: study.untrained(f, s))
            at_rate = functools.partial(_at_rate, study, record, way, frames)
            best = search(RATES, effort.extensions, functools.partial(at_rate, 0))
            at_rate(seed, best)


def _at_rate(study: Any, record: Any, way: Way, frames: int, seed: int, rate: float) -> float:
    run = functools.partial(study.trained, way, frames, seed, rate)
    return record(way.name, frames, seed, rate, run)["validation"]


def search(rates: Sequence[float], extensions: int, validation: Callable[[float], float]) -> float:
    """The rate with the lowest validation error; the grid grows while its end is the best."""
    values = {rate: validation(rate) for rate in rates}
    for _ in range(extensions):
        best = min(values, key=lambda rate: (values[rate], rate))
        if min(values) < best < max(values):
            break
        factor = FACTOR if best == max(values) else 1 / FACTOR
        rate = float(f"{best * factor:.1g}")
        values[rate] = validation(rate)
    return min(values, key=lambda rate: (values[rate], rate))


class _Prepared:
    """The model, the frames, and the compiled programs of each way."""

    def __init__(self, effort: Effort):
        self.effort = effort
        source = source_of(effort.recipe)
        self.model = source.model
        sets = {"validation": alloys(1000, effort.validation), "test": alloys(1001, effort.test)}
        most = max(effort.frames)
        sets |= {f"training {seed}": alloys(seed, most) for seed in range(effort.seeds)}
        frames = {name: Frames(graphs_of(cells), labels(cells)) for name, cells in sets.items()}
        # One number of pairs, and so one program, for all.
        frames |= {"near": source.near, "far": source.far}
        pairs = max(frame.graphs.senders.shape[1] for frame in frames.values())
        self.frames = {
            name: frame._replace(graphs=padded(frame.graphs, CUTOFF, pairs))
            for name, frame in frames.items()
        }
        self.programs: dict[str, Any] = {}

    def _training(self, seed: int, number: int) -> tuple[Frames, ForceField]:
        """All frames of the seed, and the model with energies of atoms that fit the first."""
        if "energies" not in self.programs:
            self.programs["energies"] = eqx.filter_jit(predictions)
        frames = self.frames[f"training {seed}"]
        energies = self.programs["energies"](self.model, frames.graphs).energy
        first = jax.tree.map(lambda x: x[:number], frames)
        return frames, shifted(self.model, energies[:number], first)

    def untrained(self, frames: int, seed: int) -> dict[str, Any]:
        """The errors of the model with energies of atoms that fit the frames."""
        model = self._training(seed, frames)[1]
        trainable, frozen = eqx.partition(model, lambda _: False)
        return self._errors("none", trainable, frozen) | {"trained": 2}

    def trained(self, way: Way, frames: int, seed: int, rate: float) -> dict[str, Any]:
        """The results of one training."""
        training, model = self._training(seed, frames)
        trainable, frozen = way.start(model, jax.random.key(seed))
        start = time.process_time()
        if way.name not in self.programs:
            self.programs[way.name] = eqx.filter_jit(functools.partial(_train, self.effort))
        best = self.programs[way.name](
            trainable,
            frozen,
            training,
            self.frames["validation"],
            *map(jnp.asarray, (frames, rate, seed)),
        )
        return {
            "validation": float(best.validation),
            "best step": int(best.best_step),
            "trained": number_of(trainable),
            "seconds": round(time.process_time() - start, 2),
        } | self._errors(way.name, best.trainable, frozen)

    def _errors(self, way: str, trainable: Any, frozen: Any) -> dict[str, Any]:
        """Errors of the test frames, and what changed on other materials."""
        parts = {name: self.frames[name] for name in ("test", "near", "far")}
        everything = jax.tree.map(lambda *x: jnp.concatenate(x), *parts.values())
        name = f"errors of {way}"
        if name not in self.programs:
            self.programs[name] = eqx.filter_jit(lambda t, f, g: predictions(eqx.combine(t, f), g))
        predicted = self.programs[name](trainable, frozen, everything.graphs)
        results: dict[str, float] = {}
        start = 0
        for part, frames in parts.items():
            here = slice(start, start + len(frames.labels.energy))
            start = here.stop
            energy, force = errors(jax.tree.map(lambda x, h=here: x[h], predicted), frames.labels)
            results |= {f"{part} energy": energy, f"{part} force": force}
        return results


def _train(
    effort: Any,
    trainable: Any,
    frozen: Any,
    training: Frames,
    validation: Frames,
    number: Any,
    rate: Any,
    seed: Any,
) -> Any:
    """Train on the first `number` frames, one for each step, in an order that `seed` draws."""

    def predicted(trainable: Any, frames: Frames) -> Any:
        return predictions(eqx.combine(trainable, frozen), frames.graphs)

    def loss(trainable: Any, step: Any) -> Any:
        # Every frame once in each pass, in an order of the pass.
        key = jax.random.fold_in(jax.random.key(seed), step // number)
        draws = jax.random.uniform(key, (len(training.labels.energy),))
        order = jnp.argsort(jnp.where(jnp.arange(len(draws)) < number, draws, 2.0))
        index = order[step % number]
        frame = jax.tree.map(lambda x: x[index][None], training)
        return misfit(predicted(trainable, frame), frame.labels)

    def error(trainable: Any) -> Any:
        return absolute_error(predicted(trainable, validation), validation.labels)

    rates = jax.tree.map(lambda _: rate, trainable)
    return fine_tune(trainable, loss, error, rates, effort)
