"""The ways to make members. All of them have the same folds and the same two scales."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from jno.lora import Net
from jno_lora_conditional import Conditional, Powers, at
from jno_lora_uncertainty import Ensemble

from .._families import Effort, Family, pretrained
from ._problems import Problem, pretraining

MEMBERS = 5
ADAPTERS, FULL, PRETRAINED, HEAD = (
    "five adapters",
    "five full models, one base",
    "five full models, five pretrainings",
    "five last layers",
)


@dataclass(frozen=True)
class Way:
    """A way to make members, and the first learning rate to try."""

    name: str
    rate: float
    make: Callable[[Problem, Effort, int], Any]  # of problem, effort and number of the member

    def ensemble(self, problem: Problem, effort: Effort, seed: int, members: int) -> Ensemble:
        """The members before their training."""
        made = iter(range(members))
        call = functools.partial(_call_conditional if problem.values else _call, problem)
        key = jax.random.key(seed)

        def member(key: Any) -> Any:
            net = self.make(problem, effort, next(made))
            return net(key)

        return Ensemble(member, members, key=key, call=call)


def _call(problem: Problem, model: Any, x: Any) -> Any:
    return problem.called(model, x)


def _call_conditional(problem: Problem, conditional: Any, x: Any) -> Any:
    return problem.called(at(conditional, x[0]), x[1])


def _adapters(problem: Problem, effort: Effort, _: int) -> Callable[[Any], Any]:
    specs = [{"wrapper": "lora", "rank": 1}]
    if problem.family.spectral:
        specs.insert(0, {"wrapper": "cp", "rank": 4})
    model = pretrained(problem.family, effort)

    def net(key: Any) -> Any:
        adapted = Net(model, key=key).freeze().lora(specs=specs)
        if not problem.values:
            return adapted
        source = problem.family.source[problem.parameter]
        unit = abs(float(jnp.log(min(problem.values) / source)))
        return Conditional(adapted, Powers(source, unit, coordinate="log"))

    return net


def _full(problem: Problem, effort: Effort, _: int) -> Callable[[Any], Any]:
    return lambda key: Net(pretrained(problem.family, effort), key=key)


def _pretrained(problem: Problem, effort: Effort, member: int) -> Callable[[Any], Any]:
    return lambda key: Net(_base(problem.family, effort, member), key=key)


def _head(problem: Problem, effort: Effort, _: int) -> Callable[[Any], Any]:
    def net(key: Any) -> Any:
        model = pretrained(problem.family, effort)
        frozen = Net(model, key=key).freeze()
        return frozen.mask(_mask_of_head(problem, model)).unfreeze()

    return net


def _mask_of_head(problem: Problem, model: Any) -> Any:
    names = problem.family.head.split("|")

    def is_head(keys: Any, _: Any) -> bool:
        return any(name in jax.tree_util.keystr(keys) for name in names)

    return jax.tree_util.tree_map_with_path(is_head, model)


_BASES: dict[tuple[str, Effort, int], Any] = {}  # pretrained once for all runs of a process


def _base(family: Family, effort: Effort, member: int) -> Any:
    key = family.name, effort, member
    if key not in _BASES:
        _BASES[key] = pretraining(effort, family, member)
    return _BASES[key]


WAYS = (
    Way(ADAPTERS, 1e-2, _adapters),
    Way(FULL, 1e-3, _full),
    Way(PRETRAINED, 1e-3, _pretrained),
    Way(HEAD, 3e-3, _head),
)
