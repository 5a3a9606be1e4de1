"""Adapters side by side: each trained from the same start, on the same batches, for as long."""

import dataclasses
import itertools
import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray, PyTree

from .._contract import LoRAWrapper
from .._errors import SelectionError
from .._extras import imported_for
from .._handle import refuse_net
from .._net import Net
from .._registry import Registry
from .._reports import count
from .._showing import Bar
from ._comparison import Comparison, ComparisonRow
from ._fitting import Loss, Trainer

_LOG = logging.getLogger("jno.lora.compare")

# Candidates that are no adapters: everything trains, nothing trains.
FULL, NONE = "full", "none"

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
    learning_rate: float = 1e-3,
    optimizer: Any = None,
    registry: Registry | None = None,
) -> Comparison:
    """Train adapters of each kind on your model, from the same start and under the same budget.

    Only the adapters train. A method's best learning rate is its own, so a fair comparison is made
    at a few of them; and what is compared is the loss in training: `ComparisonRow.model` is there
    to be measured on data that nobody trained on.

    Interrupt it (Ctrl-C) to get what is finished.

    **Arguments:**

    - `model`: any pytree that holds Equinox modules, without adapters. It is not changed.
    - `loss`: `loss(model, batch)`, a scalar. What is random in it takes a key from the batch; the
        state of a stateful model is for it to hold.
    - `batches`: pytrees of arrays of the same shapes, in a list or any other iterable. Of an
        iterator that goes on for ever, `steps` batches are taken. They are kept, and begun again
        when they are used up.
    - `wrappers`: the candidates: names (`"DoRALinear"`), variants (`"dora"`), classes, or lists of
        those in order of priority, as for `Net.lora`. `"full"` trains everything, `"none"` nothing.
    - `steps`: how many each candidate is trained.
    - `key`: for the adapters' initial values.
    - `rank`, `alpha`, `target`, `options`: as for `Net.lora`.
    - `learning_rate`: of Adam, if there is no `optimizer`.
    - `optimizer`: an optax optimiser instead.
    - `registry`: where adapters are looked up by name, instead of among the installed plugins.

    **Returns:** a `Comparison`. A candidate that cannot be trained is a row with its error.

    **Raises:** `SelectionError` if the arguments make no sense (a `Net` for the model, no batches,
    batches of different shapes, a loss that is no scalar); `MissingLibraryError` without optax (the
    extra `compare`) if there is no `optimizer`; what `loss` raises on the model as it is.
    """
    refuse_net(model, "compare")
    candidates = [wrappers] if isinstance(wrappers, str | type) else list(wrappers)
    if steps < 1 or not candidates:
        raise SelectionError(
            "`compare` needs at least one candidate and one step, but was given "
            f"{len(candidates)} in `wrappers` and steps={steps}."
        )
    kept = list(itertools.islice(batches, steps))
    _check_batches(kept)
    _check_loss(loss, model, kept[0])

    def adapted(candidate: Candidate) -> Net:
        net = Net(model, key=key, registry=registry)
        if candidate == FULL:
            return net
        net.freeze()
        if candidate == NONE:
            return net
        return net.lora(rank, alpha, target=target, wrapper=candidate, options=options)

    optimizer = _adam(learning_rate) if optimizer is None else optimizer
    contest = _Contest(adapted, loss, kept, steps, optimizer)
    rows: list[ComparisonRow] = []
    try:
        with Bar(len(candidates) * steps) as bar:
            for number, candidate in enumerate(candidates):
                bar.update(completed=number * steps, what=_name(candidate))
                rows.append(contest.row_of(candidate, bar.advance))
                _LOG.info("%r", rows[-1])
    except KeyboardInterrupt:
        return Comparison(tuple(rows), steps, interrupted=True)
    return Comparison(tuple(rows), steps)


@dataclasses.dataclass(frozen=True)
class _Contest:
    """What is the same for all candidates."""

    adapted: Callable[[Candidate], Net]
    loss: Loss
    batches: list[PyTree]
    steps: int
    optimizer: Any

    def row_of(self, candidate: Candidate, on_step: Callable[[], None]) -> ComparisonRow:
        try:
            return self.trained(candidate, on_step)
        except Exception as err:
            # The error as text: its traceback would hold on to the arrays of this candidate.
            name = _name(candidate)
            _LOG.info("The candidate %s failed", name, exc_info=True)
            return ComparisonRow(name, error=f"{type(err).__name__}: {err}")

    def trained(self, candidate: Candidate, on_step: Callable[[], None]) -> ComparisonRow:
        net, trainer = self.adapted(candidate), Trainer(self.loss, self.optimizer)
        trainable, frozen = net.partition()
        cost = trainer.compile(trainable, frozen, self.batches[0])
        supply = itertools.islice(itertools.cycle(self.batches), self.steps)
        fit = trainer.fit(trainable, frozen, supply, on_step=on_step)
        means = _running_means(fit.losses, max(1, self.steps // 10))
        return ComparisonRow(
            name=_name(candidate),
            trainable=count(net.module, net.trainable),
            final_loss=means[-1],
            best_loss=min(means, key=lambda mean: math.inf if math.isnan(mean) else mean),
            milliseconds=fit.milliseconds,
            temp_bytes=cost.temp_bytes,
            compile_seconds=cost.compile_seconds,
            losses=fit.losses,
            model=net.update(fit.trainable).module,
        )


def _running_means(losses: Sequence[float], window: int) -> list[float]:
    return [
        math.fsum(losses[end - window : end]) / window for end in range(window, len(losses) + 1)
    ]


def _name(candidate: Candidate) -> str:
    if isinstance(candidate, str):
        return candidate
    if isinstance(candidate, type):
        return candidate.__name__
    return ", ".join(map(_name, candidate))


def _adam(learning_rate: float) -> Any:
    with imported_for("compare", "compare", "optax"):
        import optax
    return optax.adam(learning_rate)


def _check_loss(loss: Loss, model: PyTree, batch: PyTree) -> None:
    try:
        value = eqx.filter_eval_shape(loss, model, batch)
    except Exception as err:
        err.add_note("Raised by `loss(model, batch)` on the model as it is, before any adapter.")
        raise
    if getattr(value, "shape", None) != () or not jnp.issubdtype(value.dtype, jnp.floating):
        raise SelectionError(
            f"`loss(model, batch)` must return one real number, but returns {value!r}. Take the "
            "mean over the batch, and put what else it returns elsewhere."
        )


def _check_batches(batches: list[PyTree]) -> None:
    if not batches:
        raise SelectionError("`batches` holds no batch.")
    first, *others = map(_form, batches)
    for number, form in enumerate(others, start=1):
        if form != first:
            raise SelectionError(
                "All batches must have the same shapes, so that every step is the same work, but "
                f"batch {number} has another form than batch 0:\n  {form[0]}\n  {first[0]}\n"
                "Leave out what remains at the end of the data."
            )


def _form(batch: PyTree) -> tuple[str, Any]:
    leaves, treedef = jax.tree.flatten(batch)
    shapes = (f"{x.dtype}{list(x.shape)}" if eqx.is_array(x) else repr(x) for x in leaves)
    return ", ".join(shapes), treedef
