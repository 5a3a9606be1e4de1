"""The ways to get error bars. All of them have the same folds and the same two scales."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax

from jno.lora import Net, lora_trainable_filter
from jno_lora_conditional import Conditional, Powers, at
from jno_lora_uncertainty import Ensemble

from .._families import Effort, Family, pretrained
from ._problems import PROBLEMS, Problem, pretraining
from ._spreads import Spread, dropout, laplace, none, swag

ADAPTERS, FULL, PRETRAINED, HEAD, SINGLE = (
    "five adapters",
    "five full models, one base",
    "five full models, five pretrainings",
    "five last layers",
    "one adapter, constant width",
)


@dataclass(frozen=True)
class Way:
    """A way to make members, and the first learning rate to try.

    - `make`: gives the net of a member, by problem, effort and number of the member.
    - `spread`: of one model; by default the spread over the members.
    - `members`, `samples`: their numbers; by default, the numbers of simulations of the problem.
    """

    name: str
    rate: float
    make: Callable[[Problem, Effort, int], Any]
    spread: Spread | None = None
    members: int = 5
    samples: tuple[int, ...] = ()

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
        return Conditional(adapted, Powers(source, abs(min(problem.values) - source)))

    return net


def _full(problem: Problem, effort: Effort, _: int) -> Callable[[Any], Any]:
    return lambda key: Net(pretrained(problem.family, effort), key=key)


def _pretrained(problem: Problem, effort: Effort, member: int) -> Callable[[Any], Any]:
    return lambda key: Net(_base(problem.family, effort, member), key=key)


def _head(problem: Problem, effort: Effort, _: int) -> Callable[[Any], Any]:
    def net(key: Any) -> Any:
        model = pretrained(problem.family, effort)
        frozen = Net(model, key=key).freeze()
        return frozen.mask(_mask_of_head(model)).unfreeze()

    return net


_HEADS = tuple("|".join(problem.family.head for problem in PROBLEMS).split("|"))


def _mask_of_head(model: Any) -> Any:
    def is_head(keys: Any, leaf: Any) -> bool:
        path = jax.tree_util.keystr(keys)
        return eqx.is_inexact_array(leaf) and any(name in path for name in _HEADS)

    return jax.tree_util.tree_map_with_path(is_head, model)


_BASES: dict[tuple[str, Effort, int], Any] = {}  # pretrained once for all runs of a process


def _base(family: Family, effort: Effort, member: int) -> Any:
    key = family.name, effort, member
    if key not in _BASES:
        _BASES[key] = pretraining(effort, family, member)
    return _BASES[key]


WAYS = (
    Way(ADAPTERS, 1e-2, _adapters),
    Way(PRETRAINED, 1e-3, _pretrained),
    Way(FULL, 1e-3, _full),
    Way(SINGLE, 1e-2, _adapters, none),
    Way("one adapter, Laplace", 1e-2, _adapters, laplace(lora_trainable_filter)),
    Way("one adapter, last-layer Laplace", 1e-2, _adapters, laplace(_mask_of_head)),
    Way("one adapter, SWAG", 1e-2, _adapters, swag),
    Way("one adapter, dropout", 1e-2, _adapters, dropout),
    Way(HEAD, 3e-3, _head),
    Way("three adapters", 1e-2, _adapters, members=3, samples=(16,)),
    Way("ten adapters", 1e-2, _adapters, members=10, samples=(16,)),
)
