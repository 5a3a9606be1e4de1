"""The ways of the study: which arrays train on a task, and what holds the earlier tasks."""

import functools
import math
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from jno.lora import AdapterSet, Net, extract_adapters, merge_lora
from jno.lora.extending import adapted_layers
from jno_lora_train.optim import Subspaces
from jno_lora_zoo import collect_statistics

from ._fitting import Fitting, Given, Held, Holds, Outcome, fisher
from ._problem import Data

RANK = 2
CLOSED = 0.5  # the fraction of a weight's singular directions that OSF and CLoRA stay away from


@dataclass(frozen=True)
class Way:
    """How a sequence of tasks is learned.

    **Arguments:**

    - `adapters`: `None`: all weights train. `"continued"`: one set of adapters trains on task after
        task. `"alone"`: each task has adapters of the pretrained model, and a sample is given the
        adapters of its task. `"summed"`: each task has new adapters, and the earlier adapters stay
        below them, frozen. They are merged into the weights, which is the same sum. `"null"`:
        summed, by LoRA-Null: the frozen `A` of each task lies where the stored inputs of earlier
        settings are least. `"orthogonal"`: summed, and the new adapters stay out of the larger half
        of the singular directions of the weights before the task. `"osf"`: the same, and all of the
        smaller half trains.
    - `holds`: `"replay"`: half of each batch is stored samples. `"retain"`: the penalty of
        `jno_lora_train.retain` on stored inputs, against the model before the task. `"ewc"`: a
        quadratic penalty by Fisher information. `"clora"`: CLoRA's penalty, by random directions.
    - `rate`, `weight`: where the searches start. A weight of 1 is not searched.
    """

    name: str
    adapters: Literal["continued", "alone", "summed", "null", "orthogonal", "osf"] | None = None
    holds: Literal["replay", "retain", "ewc", "clora"] | None = None
    rate: float = 3e-3
    weight: float = 1.0


FULL, PLAIN, EACH = "full", "LoRA, continued", "LoRA per task"
SUM, NULL, REPLAYED = "sum of LoRAs", "null-space LoRA", "LoRA, replay"
WAYS = (
    Way(FULL, rate=1e-3),
    Way(PLAIN, "continued"),
    Way(EACH, "alone"),
    Way(SUM, "summed"),
    Way(NULL, "null"),
    Way(REPLAYED, "continued", "replay"),
    Way("LoRA, retain", "continued", "retain", weight=10.0),
    Way("full, EWC", None, "ewc", rate=1e-3, weight=10.0),
    Way("full, replay", None, "replay", rate=1e-3),
    Way("OSF", "osf", rate=1e-3),
    Way("LoRA, `stay_orthogonal`", "orthogonal"),
    Way("LoRA, CLoRA's penalty", "continued", "clora", weight=0.1),
)


class Learned(NamedTuple):
    """The results of a sequence.

    - `errors`: a row for each stage, the pretrained model first: the errors on all settings.
    - `right_after`: the error on the validation samples of each task right after its training.
    - `validations`: the errors on the validation samples of all settings after the last stage.
    - `sets`: the adapters of each task, for ways that keep them.
    """

    errors: list[list[float]]
    right_after: list[float]
    validations: list[float]
    steps: list[int]
    trained: int
    sets: list[AdapterSet]


class Learner:
    """Learns the sequence with the simulations of one seed."""

    def __init__(self, model: Any, data: Data, fitting: Fitting, seed: int):
        self.model, self.data, self.fitting = model, data, fitting
        self.key, self.seed = jax.random.key(seed), seed
        self._fisher: Any = eqx.filter_jit(functools.partial(fisher, fitting))
        self._errors_on: Any = eqx.filter_jit(fitting.errors_on)

    def errors_on(self, model: Any) -> tuple[list[float], list[float]]:
        """The errors on the tests and the validation samples of each setting."""
        tests, validations = self._errors_on(model, self.data)
        return _rounded(tests), _rounded(validations)

    def learn(self, way: Way, rate: float, weight: float) -> Learned:
        """Learn all tasks, one after the other."""
        first, at_source = self.errors_on(self.model)
        errors, validations, steps, sets = [first], at_source, [], []
        right_after: list[float] = []
        model, holds, trainable = self.model, Holds(), None
        for task in range(1, len(self.data.z)):
            before = model
            trainable, frozen = self._parts(way, model, task)
            holds = self._holds(way, holds, before, eqx.combine(trainable, frozen), task)
            if holds.closed is not None:
                trainable = holds.closed.project(trainable)
            given = Given(task, rate, weight, way.holds == "replay").arrays()
            key = jax.random.fold_in(self.key, task)
            outcome: Outcome = self.fitting.run(trainable, frozen, self.data, key, given, holds)
            model = eqx.combine(outcome.trainable, frozen)
            steps.append(int(outcome.steps))
            row, seen = _rounded(outcome.errors), _rounded(outcome.validations)
            if way.adapters == "alone":  # each setting has its own adapters
                row, seen = (
                    [*known[:task], new[task], *new[task + 1 :]]
                    for known, new in ((errors[-1], row), (validations, seen))
                )
                sets.append(extract_adapters(model))
            errors.append(row)
            right_after.append(seen[task])
            validations = seen
        trained = sum(leaf.size for leaf in jax.tree.leaves(trainable))
        return Learned(errors, right_after, validations, steps, trained, sets)

    def _parts(self, way: Way, model: Any, task: int) -> tuple[Any, Any]:
        """The trainable and the frozen arrays of a task."""
        if way.adapters is None:
            return eqx.partition(model, eqx.is_inexact_array)
        if way.adapters == "continued" and task > 1:
            return eqx.partition(model, self._net(self.model, 1).trainable)
        base = self.model if way.adapters == "alone" else merge_lora(model)
        return self._net(base, task, way.adapters).partition()

    def _net(self, model: Any, task: int, adapters: str | None = None) -> Net:
        net = Net(model, key=jax.random.fold_in(jax.random.key(self.seed), task)).freeze()
        dense = self.fitting.operator.dense
        if adapters == "null":
            data = [self.stored(setting) for setting in range(task)]
            statistics = collect_statistics(model, data, self.fitting.error, wrapper="lora-null")
            net.lora(RANK, 2.0 * RANK, wrapper="lora-null", statistics=statistics)
            return net.mask("lora_A$").freeze()
        if adapters == "osf":
            for path, size in _sizes(Net(model).freeze().lora(1, wrapper="milora").module).items():
                rank = size - math.floor(CLOSED * size)  # all that is not closed
                net.lora(rank, float(rank), wrapper="milora", target=f"^{path}$")
            return net
        target = dense if adapters == "orthogonal" else None
        return net.lora(RANK, 2.0 * RANK, wrapper="lora", target=target)

    def _holds(self, way: Way, holds: Holds, before: Any, start: Any, task: int) -> Holds:
        """What holds the settings before a task.

        `holds` is of the task before, `start` the model that trains now.
        """
        if way.adapters in ("osf", "orthogonal"):
            return Holds(closed=Subspaces.of_weights(start, CLOSED))
        if way.holds == "ewc":
            return Holds(self._held(holds.ewc, before, task - 1))
        if way.holds == "retain":
            return Holds(base=merge_lora(before))
        if way.holds == "clora" and holds.drawn is None:
            return Holds(drawn=Subspaces.random(start, CLOSED, key=self.key))
        return holds

    def stored(self, setting: int) -> tuple[Any, Any, Any]:
        """The training samples of a setting."""
        fields, solutions = (u[setting, self.fitting.held_out :] for u in self.data.pool)
        return fields, solutions, jnp.broadcast_to(self.data.z[setting], len(fields))

    def fisher(self, model: Any, setting: int) -> Any:
        """The diagonal of the Fisher matrix of a plain model, on the samples of a setting."""
        return self._fisher(model, self.data, jnp.asarray(setting), self.key)

    def _held(self, held: Held | None, model: Any, setting: int) -> Held:
        """EWC's penalty with one more setting. The sum of quadratics is one quadratic."""
        new = self.fisher(model, setting)
        weights = eqx.filter(model, eqx.is_inexact_array)
        if held is None:
            return Held(new, weights)
        total = jax.tree.map(jnp.add, held.fisher, new)
        centre = jax.tree.map(_centre, held.fisher, held.centre, new, weights)
        return Held(total, centre)


def _centre(fisher: Any, centre: Any, new: Any, weights: Any) -> Any:
    total = fisher + new
    moved = (fisher * centre + new * weights) / jnp.where(total > 0, total, 1)
    return jnp.where(total > 0, moved, weights)


def _sizes(model: Any) -> dict[str, int]:
    """By path, the smaller size of the matrix of each adapted layer."""
    return {
        path: min(adapter.lora_A.shape[-1], adapter.lora_B.shape[-2])
        for path, adapter in adapted_layers(model)
    }


def _rounded(errors: Any) -> list[float]:
    return [round(float(x), 6) for x in np.asarray(errors)]
