"""All runs of the study, in order of importance, each recorded as one line of a file."""

import functools
import itertools
import pathlib
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from .._records import append, read
from .._training import fine_tune
from ._checkpoint import sevennet_0
from ._crystals import graph_of, stacked
from ._force_field import ForceField
from ._frames import (
    METALS,
    SALTS_AND_SEMICONDUCTORS,
    Frames,
    alloys,
    errors,
    misfit,
    others,
    predictions,
    shifted,
)
from ._teacher import COPPER, GOLD, labels
from ._ways import WAYS, Way, number_of

RESULTS = pathlib.Path(__file__).parents[1] / "results" / "equivariant.jsonl"
KEY = ("way", "frames", "seed", "rate")  # the name of a run
NONE = "energies of the atoms alone"  # before training
FACTOR = 3.0  # from a rate to the next


def small_model() -> tuple[ForceField, dict[int, int]]:
    """An untrained model, to see that everything runs."""
    numbers = [COPPER, GOLD, *{n for m in (*METALS, *SALTS_AND_SEMICONDUCTORS) for n in m[2]}]
    irreps = ("4x0e", "4x0e+2x1e", "4x0e")
    model = ForceField(irreps, len(numbers), widths=(2, 3), key=jax.random.key(0))
    return model, {number: index for index, number in enumerate(numbers)}


@dataclass(frozen=True)
class Effort:
    """How much is computed: the full study, or just enough to see that everything runs."""

    model: Callable[[], tuple[ForceField, dict[int, int]]] = sevennet_0
    frames: Sequence[int] = (20, 10, 50)
    validation: int = 8
    test: int = 24
    source: int = 2  # frames of each material
    seeds: int = 3
    steps: int = 100
    every: int = 20  # steps between validations
    patience: int = 5  # validations
    extensions: int = 3  # of the rates, while the best is the lowest or the highest


FULL = Effort()
QUICK = Effort(small_model, (2,), 1, 1, 1, 1, 2, 1, 2, 0)


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
            best = search(way.rates, effort.extensions, functools.partial(at_rate, 0))
            at_rate(seed, best)


def _at_rate(study: Any, record: Any, way: Way, frames: int, seed: int, rate: float) -> float:
    run = functools.partial(study.trained, way, frames, seed, rate)
    return record(way.name, frames, seed, rate, run)["validation"]


def search(
    rates: Sequence[float], extensions: int, validation: Callable[[float], float]
) -> float:
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
        self.model, types = effort.model()
        most = max(effort.frames)
        sets = {"validation": alloys(1000, effort.validation), "test": alloys(1001, effort.test)}
        sets |= {f"training {seed}": alloys(seed, most) for seed in range(effort.seeds)}
        labelled = {name: labels(crystals) for name, crystals in sets.items()}
        sets |= {"near": others(METALS, effort.source)}
        sets |= {"far": others(SALTS_AND_SEMICONDUCTORS, effort.source)}
        cutoff = self.model.cutoff
        graphs = {n: [graph_of(c, types, cutoff) for c in crystals] for n, crystals in sets.items()}
        # One shape, and so one program, for all.
        pairs = max(len(graph.senders) for part in graphs.values() for graph in part)
        self.graphs = {name: stacked(part, cutoff, pairs) for name, part in graphs.items()}
        everything = jax.tree.map(lambda *x: jnp.concatenate(x), *self.graphs.values())
        predicted = self._split(eqx.filter_jit(predictions)(self.model, everything))
        self.energies = {name: part.energy for name, part in predicted.items()}
        self.labels = predicted | labelled  # SevenNet-0's own of the source
        self.programs: dict[str, Any] = {}

    def _split(self, predicted: Any) -> dict[str, Any]:
        ends, start = {}, 0
        for name, graphs in self.graphs.items():
            ends[name] = slice(start, start + len(graphs.species))
            start += len(graphs.species)
        return {n: jax.tree.map(lambda x, s=s: x[s], predicted) for n, s in ends.items()}

    def _training(self, seed: int, number: int) -> tuple[Frames, ForceField]:
        """All frames of the seed, and the model with energies of atoms that fit the first."""
        name = f"training {seed}"
        frames = Frames(self.graphs[name], self.labels[name])
        first = jax.tree.map(lambda x: x[:number], frames)
        return frames, shifted(self.model, self.energies[name][:number], first)

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
            self.programs.clear()  # only one way's programs are in memory
            self.programs[way.name] = eqx.filter_jit(functools.partial(_train, self.effort))
        validation = Frames(self.graphs["validation"], self.labels["validation"])
        best = self.programs[way.name](
            trainable, frozen, training, validation, frames, jnp.asarray(rate), seed
        )
        return {
            "validation": float(best.validation),
            "best step": int(best.best_step),
            "trained": number_of(trainable),
            "seconds": round(time.process_time() - start, 2),
        } | self._errors(way.name, best.trainable, frozen)

    def _errors(self, way: str, trainable: Any, frozen: Any) -> dict[str, Any]:
        """Errors of the test frames, and what changed on other materials."""
        parts = {name: self.graphs[name] for name in ("test", "near", "far")}
        graphs = jax.tree.map(lambda *x: jnp.concatenate(x), *parts.values())
        name = f"errors of {way}"
        if name not in self.programs:
            self.programs[name] = eqx.filter_jit(lambda t, f, g: predictions(eqx.combine(t, f), g))
        predicted = self.programs[name](trainable, frozen, graphs)
        results, start = {}, 0
        for part, part_graphs in parts.items():
            end = start + len(part_graphs.species)
            here = jax.tree.map(lambda x, s=slice(start, end): x[s], predicted)
            energy, force = errors(here, self.labels[part])
            results |= {f"{part} energy": energy, f"{part} force": force}
            start = end
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

    def misfit_of(trainable: Any, frames: Frames) -> Any:
        return misfit(predictions(eqx.combine(trainable, frozen), frames.graphs), frames.labels)

    def loss(trainable: Any, step: Any) -> Any:
        # Every frame once in each pass, in an order of the pass.
        key = jax.random.fold_in(jax.random.key(seed), step // number)
        draws = jax.random.uniform(key, (len(training.graphs.species),))
        order = jnp.argsort(jnp.where(jnp.arange(len(draws)) < number, draws, 2.0))
        index = order[step % number]
        return misfit_of(trainable, jax.tree.map(lambda x: x[index][None], training))

    rates = jax.tree.map(lambda _: rate, trainable)
    return fine_tune(trainable, loss, lambda t: misfit_of(t, validation), rates, effort)


def missing(path: pathlib.Path) -> Iterator[tuple[str, int, int]]:
    """The ways, numbers of frames and seeds of the full study without a run."""
    done = {(record["way"], record["frames"], record["seed"]) for record in read(path)}
    for seed, frames, way in itertools.product(range(FULL.seeds), FULL.frames, WAYS):
        if (way.name, frames, seed) not in done:
            yield way.name, frames, seed
