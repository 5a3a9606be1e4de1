"""The ways of the study: which arrays train on a task, and what holds the earlier tasks."""

import functools
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from jno.lora import Net, extract_adapters, merge_lora
from jno.lora.types import AdapterSet

from ._fitting import Fitting, Given, Held, Outcome, error, fisher
from ._problem import SPEEDS, Data

RANK = 2


@dataclass(frozen=True)
class Way:
    """How a sequence of tasks is learned.

    **Arguments:**

    - `adapters`: `None`: all weights train. `"continued"`: one set of adapters trains on task after
        task. `"alone"`: each task has adapters of the pretrained model, and a sample is given the
        adapters of its task. `"summed"`: each task has new adapters, and the earlier adapters stay
        below them, frozen. They are merged into the weights, which is the same sum. `"null"`:
        summed, by LoRA-Null: the frozen `A` of each task lies where the stored inputs of earlier
        settings are least.
    - `holds`: `"replay"`: half of each batch is stored samples. `"retain"`: the penalty of
        `jno.lora.retain` on stored inputs, against the model before the task. `"ewc"`: a quadratic
        penalty by Fisher information.
    - `rate`, `weight`: where the searches start. A weight of 1 is not searched.
    """

    name: str
    adapters: Literal["continued", "alone", "summed", "null"] | None = None
    holds: Literal["replay", "retain", "ewc"] | None = None
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
        model, held, trainable = self.model, None, None
        for task in range(1, len(SPEEDS)):
            if way.holds == "ewc":
                held = self._held(held, model, task - 1)
            before = model if way.holds == "retain" else None
            trainable, frozen = self._parts(way, model, task)
            given = Given(task, rate, weight, way.holds == "replay").arrays()
            key = jax.random.fold_in(self.key, task)
            outcome: Outcome = self.fitting.run(
                trainable, frozen, self.data, key, given, held, _plain(before)
            )
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
        base = self.model if way.adapters == "alone" else _plain(model)
        return self._net(base, task, is_null=way.adapters == "null").partition()

    def _net(self, model: Any, task: int, *, is_null: bool = False) -> Net:
        net = Net(model, key=jax.random.fold_in(jax.random.key(self.seed), task)).freeze()
        if not is_null:
            return net.lora(RANK, 2.0 * RANK, wrapper="lora")
        data = [self.stored(setting) for setting in range(task)], error
        net.lora(RANK, 2.0 * RANK, wrapper="lora-null", calibrate=data)
        return net.mask("lora_A$").freeze()

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


def _plain(model: Any) -> Any:
    return None if model is None else merge_lora(model)


def _rounded(errors: Any) -> list[float]:
    return [round(float(x), 6) for x in np.asarray(errors)]
