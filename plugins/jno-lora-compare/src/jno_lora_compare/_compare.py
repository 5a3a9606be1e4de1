"""Adapters side by side: each trained from the same start, on the same batches, for as long."""

import itertools
import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray, PyTree

from jno.lora import JnoLoraError, LoRAWrapper, Net, Registry, SelectionError, resolve
from jno.lora.extending import Bar, default_registry, imported_for

from ._checks import check_batches, check_candidates, check_loss, check_model, checked_rates
from ._comparison import Comparison, ComparisonRow
from ._fitting import Fit, Loss, Trainer, number_of

_LOG = logging.getLogger("jno.lora.compare")

_DEFAULT_RATE = 1e-3

# So many of the batches are calibrated on, for adapters that start from data.
_FOR_STATISTICS = 8

# Candidates without an adapter: everything trains, nothing trains.
FULL, NONE = "full", "none"
# Stands for a candidate of each method that takes a layer of the model.
ALL = "all"

Candidate: TypeAlias = type[LoRAWrapper] | str | Sequence[type[LoRAWrapper] | str]


def compare(
    model: PyTree,
    loss: Loss,
    batches: Iterable[PyTree],
    wrappers: Sequence[Candidate],
    *,
    steps: int,
    key: PRNGKeyArray,
    rank: int = 4,
    alpha: float = 1.0,
    target: str | None = None,
    options: Mapping[str, Any] | None = None,
    learning_rate: float | Sequence[float] | Array | np.ndarray | None = None,
    optimizer: Any = None,
    score: Callable[[Any], Any] | None = None,
    registry: Registry | None = None,
) -> Comparison:
    """Train several adapters on your model, from the same start and under the same budget.

    Only the adapters train. Those that start from data (EVA) are calibrated on the first 8 batches
    with the same `loss`. The best learning rate differs between methods: a fair comparison
    gives several, and decides by data that nobody trained on (`score`). Ctrl-C keeps the finished
    candidates.

    **Arguments:**

    - `model`: any pytree that holds Equinox modules, without adapters. It is not changed.
    - `loss`: `loss(model, batch)`, a scalar. A random one takes its key from the batch, and holds
        the state of a stateful model itself.
    - `batches`: pytrees of arrays of the same shapes, in any iterable, which may be endless. At
        most `steps` batches are kept, and used again from the first.
    - `wrappers`: the candidates: names (`"DoRALinear"`), variants (`"dora"`), classes, or lists of
        those in order of priority, as for `Net.lora`. `"full"` trains everything, `"none"` nothing.
        `"all"` stands for every registered variant that takes a layer of the model; `options` must
        suit all of them then.
    - `steps`: how many each candidate is trained.
    - `key`: for the adapters' initial values.
    - `rank`, `alpha`, `target`, `options`: as for `Net.lora`.
    - `learning_rate`: of Adam, by default 0.001. Given several (a list or an array), each candidate
        is trained from the start at each of them, and its best one counts.
    - `optimizer`: an optax optimiser instead of Adam, with a learning rate of its own.
    - `score`: `score(model)` rates a trained model: a number, the larger the better, or a tuple
        whose later numbers decide between equal ones. It chooses the learning rate; without it the
        final loss does.
    - `registry`: where adapters are looked up by name, instead of among the installed plugins.

    **Returns:** a `Comparison`. A candidate that cannot be trained is a row with its error, if
    another adapter can be.

    **Raises:** what `Net.lora` does, if none of the adapters can be put into the model;
    `SelectionError` if the arguments make no sense (a model that carries adapters, no batches,
    batches of different shapes, a loss that is not a scalar); `MissingLibraryError` if optax is
    missing and there is no `optimizer`; what `loss` raises on the model as it is.
    """
    check_model(model)
    candidates = [wrappers] if isinstance(wrappers, str | type) else list(wrappers)
    check_candidates(candidates)
    if not isinstance(steps, int | np.integer) or isinstance(steps, bool) or steps < 1:
        raise SelectionError(f"`steps` must be a whole number of at least 1, but is {steps!r}.")
    rates: tuple[float, ...] = ()
    if optimizer is None:
        rates = checked_rates(_DEFAULT_RATE if learning_rate is None else learning_rate)
        optimizer = adam()
    elif learning_rate is not None:
        raise SelectionError(
            "`optimizer` has a learning rate of its own: leave `learning_rate` out, or it."
        )
    asked = {"alpha": alpha, "target": target, "options": options}
    fresh = Net(model, key=key, registry=registry)
    if ALL in candidates:
        every = _every_variant(fresh, registry or default_registry(), rank, asked)
        at = candidates.index(ALL)
        others = [name for name in every if name not in candidates]
        named = [candidate for candidate in candidates if candidate != ALL]
        candidates = [*named[:at], *others, *named[at:]]
    adapters = [candidate for candidate in candidates if candidate not in (FULL, NONE)]
    _check_plans(fresh, adapters, rank, asked)
    # Only now, for it may use up an iterator.
    kept = list(itertools.islice(batches, steps))
    check_batches(kept)
    check_loss(loss, model, kept[0])
    contest = _Contest(loss, kept, steps, optimizer, rates, score)

    def starts_from_data(net: Net, candidate: Candidate) -> bool:
        rows = net.plan(rank, wrapper=candidate, **asked).wrapped
        return any(row.wrapper is not None and row.wrapper.needs for row in rows)

    def trained(candidate: Candidate, name: str, on_step: Callable[[], None]) -> ComparisonRow:
        net = Net(model, key=key, registry=registry)
        if candidate != FULL:
            net.freeze()
        if candidate not in (FULL, NONE):
            data = (kept[:_FOR_STATISTICS], loss) if starts_from_data(net, candidate) else None
            net.lora(rank, wrapper=candidate, calibrate=data, **asked)
        return contest.row_of(name, net, on_step)

    rows: list[ComparisonRow] = []
    each = steps * max(1, len(rates))
    interrupted = False
    try:
        with Bar(len(candidates) * each) as bar:
            for number, candidate in enumerate(candidates):
                name = _name(candidate)
                bar.update(completed=number * each, what=name)
                try:
                    rows.append(trained(candidate, name, bar.advance))
                except Exception as err:
                    # The error as text: its traceback would hold on to this candidate's arrays.
                    _LOG.info("The candidate %s failed", name, exc_info=True)
                    rows.append(ComparisonRow(name, error=f"{type(err).__name__}: {err}"))
                _LOG.info("%r", rows[-1])
    except KeyboardInterrupt:
        interrupted = True
    return Comparison(tuple(rows), steps, interrupted, rates)


def _every_variant(net: Net, registry: Registry, rank: int, asked: Mapping[str, Any]) -> list[str]:
    """The registered variants that take a layer of the model, by family."""
    classes = [wrapper.cls for record in registry.records() for wrapper in record.wrappers]
    families = {cls.variant: cls.family or "" for cls in classes if cls.variant}
    ordered = sorted(families, key=lambda variant: (families[variant], variant))
    return [name for name in ordered if net.plan(rank, wrapper=name, **asked).wrapped]


def _check_plans(net: Net, adapters: Sequence[Any], rank: int, asked: Mapping[str, Any]) -> None:
    """**Raises:** the error of the first adapter, if none of them can be put into the model."""
    errors: list[JnoLoraError] = []
    for adapter in adapters:
        try:
            plan = net.plan(rank, wrapper=adapter, **asked)
        except JnoLoraError as err:
            errors.append(err)
        else:
            if plan.problem is None:
                return
            errors.append(SelectionError(plan.problem))
    if errors:
        raise errors[0]


class _Contest(NamedTuple):
    """The task, which is the same for all candidates."""

    loss: Loss
    batches: list[PyTree]
    steps: int
    optimizer: Any
    # Empty for an optimiser that has one of its own.
    rates: tuple[float, ...]
    score: Callable[[Any], Any] | None

    def row_of(self, name: str, net: Net, on_step: Callable[[], None]) -> ComparisonRow:
        """Train what `net` trains, at each rate."""
        trainer = Trainer(self.loss, self.optimizer)
        trainable, frozen = net.partition()
        cost = trainer.compile(trainable, frozen, self.batches[0])
        trains = bool(jax.tree.leaves(trainable))
        # A candidate that trains nothing is the same at every rate.
        rates = self.rates if trains else self.rates[:1]

        def trial(rate: float | None) -> _Trial:
            state = trainer.optimizer.init(trainable)
            if rate is not None:
                state.hyperparams["learning_rate"] = jnp.asarray(rate, jnp.float32)
            supply = itertools.islice(itertools.cycle(self.batches), self.steps)
            fit = trainer.fit(trainable, frozen, supply, state=state, on_step=on_step)
            means = _running_means(fit.losses, max(1, self.steps // 10))
            model = eqx.combine(fit.trainable, frozen)
            given = () if self.score is None else self.score(resolve(model))
            score = tuple(map(float, given if isinstance(given, tuple) else (given,)))
            return _Trial(rate, fit, means, model, score)

        best = max(map(trial, rates or (None,)), key=lambda trial: trial.order)
        return ComparisonRow(
            name=name,
            trainable=number_of(trainable),
            learning_rate=best.rate if trains else None,
            score=next(iter(best.score), None),
            final_loss=best.means[-1],
            best_loss=min(best.means, key=lambda mean: math.inf if math.isnan(mean) else mean),
            milliseconds=best.fit.milliseconds,
            temp_bytes=cost.temp_bytes,
            compile_seconds=cost.compile_seconds,
            losses=best.fit.losses,
            model=best.model,
        )


class _Trial(NamedTuple):
    """A candidate that was trained at one learning rate."""

    rate: float | None
    fit: Fit
    means: list[float]
    model: Any
    score: tuple[float, ...]  # empty if only the loss counts

    @property
    def order(self) -> tuple[float, ...]:
        """The best trial has the largest. NaN is worse than any number."""
        order = self.score or (-self.means[-1],)
        return tuple(-math.inf if math.isnan(x) else x for x in order)


def _running_means(losses: Sequence[float], window: int) -> list[float]:
    ends = range(window, len(losses) + 1)
    return [math.fsum(losses[end - window : end]) / window for end in ends]


def _name(candidate: Candidate) -> str:
    if isinstance(candidate, str):
        return candidate
    if isinstance(candidate, type):
        return candidate.__name__
    return ", ".join(map(_name, candidate))


def adam() -> Any:
    """Adam with its learning rate in its state, so that one compiled step serves for all rates."""
    with imported_for("compare", "compare", "optax"):
        import optax
    # Other numbers of Adam stay Python floats: in half precision its decay of 0.999 would be 1.
    fixed = ("b1", "b2", "eps", "eps_root")
    adam = optax.inject_hyperparams(optax.adam, static_args=fixed, hyperparam_dtype=jnp.float32)
    return adam(learning_rate=0.0)
