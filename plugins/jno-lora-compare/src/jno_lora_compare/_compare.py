"""`compare`: train adapters with the same start, batches and number of steps."""

import itertools
import logging
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Array, PRNGKeyArray, PyTree

from jno.lora import Net, Registry
from jno.lora.extending import Bar, check_rank, default_registry
from jno_lora_zoo import check_statistics_from

from ._candidates import Candidate, Description, adapt, candidates_of
from ._checks import Loss, check_batches, check_loss, check_model, checked_rates, kept_error
from ._comparison import Comparison
from ._fitting import Task, adam
from ._row import ComparisonRow

_LOG = logging.getLogger("jno.lora.compare")


def compare(
    model: PyTree,
    loss: Loss,
    batches: Iterable[PyTree],
    wrappers: Sequence[Description],
    *,
    steps: int,
    key: PRNGKeyArray,
    rank: int = 4,
    alpha: float | None = None,
    target: str | None = None,
    options: Mapping[str, Any] | None = None,
    statistics_from: Sequence[Any] | None = None,
    keep: Iterable[Any] | None = None,
    learning_rate: float | Sequence[float] | Array | np.ndarray | None = None,
    optimizer: Any = None,
    score: Callable[[Any], Any] | None = None,
    registry: Registry | None = None,
) -> Comparison:
    """Train several adapters on your model, from the same start and under the same budget.

    Only the adapters train. Adapters that start from data (EVA) are calibrated on the first 8
    batches with the same `loss`. The best learning rate differs between methods, so give several
    rates to compare fairly, and choose by data on which no candidate trained (`score`). Ctrl-C
    keeps the finished candidates. Standard error shows a progress bar if it is a terminal, or else
    a line for each finished candidate.

    **Arguments:**

    - `model`: any pytree of Equinox modules, without adapters. It is not changed.
    - `loss`: `loss(model, batch)` returns a scalar. A random loss takes its key from the batch.
        The loss itself keeps the state of a stateful model.
    - `batches`: pytrees of arrays of the same shapes, in any iterable, which may be endless. At
        most `steps` batches are read, and reused from the first batch on.
    - `wrappers`: the candidates: names (`"DoRALinear"`), variants (`"dora"`), classes, or lists of
        these in order of priority, as for `Net.lora`. `"full"` trains everything, `"none"` nothing.
        `"all"` stands for every registered variant that takes a layer of the model; `options` must
        then suit all of them. A candidate may also be a dict of arguments of `Net.lora`, with a
        `name`: `{"name": "mixed", "specs": [...], "rank": 8, "alpha": 16}`. It needs `wrapper` or
        `specs`, and may have `target`, `options` and `statistics_from`. Missing arguments are taken
        from the call, but candidates with `specs` ignore its `target`.
    - `steps`: how many steps each candidate trains.
    - `key`: for the adapters' initial values.
    - `rank`, `alpha`, `target`, `options`: as for `Net.lora`.
    - `statistics_from`: `(batches, loss)` for adapters that start from data (EVA), instead of the
        first 8 of `batches` with `loss`.
    - `keep`: a list of batches of earlier data, such as data of the pretraining, or
        `(batches, error)`. The table shows the mean of `loss(model, batch)`, or of
        `error(model, batch)`, before and after training. This mean does not influence the choice of
        the rate. The batches may differ in shape from `batches`.
    - `learning_rate`: the rate of Adam, by default 0.001. With several rates (a list or an array),
        each candidate trains from the start at each rate, and its best rate counts.
    - `optimizer`: an optax optimiser instead of Adam, with its learning rate set. The gradients
        of complex arrays are already conjugated, as in `Trainer`.
    - `score`: `score(model)` rates a trained model by a number, the larger the better, or by a
        tuple whose later numbers break ties. The learning rate is chosen by the score, or without a
        score by the final loss.
    - `registry`: where adapters are looked up by name, instead of among the installed plugins.

    **Returns:** a `Comparison`. A candidate that cannot be trained is a row with its error, as
    long as another adapter can be trained.

    **Raises:** the error of `Net.lora`, if none of the adapters fits the model;
    `SelectionError` for bad arguments (a model that carries adapters, two candidates of one name,
    no batches, batches of different shapes, a loss that is not a scalar); `MissingLibraryError` if
    optax is missing and there is no `optimizer`; any error that `loss`, or the error function of
    `keep`, raises on the model as it is.
    """
    check_model(model)
    check_rank(steps, "`steps`")
    rates = checked_rates(learning_rate, optimizer)
    optimizer = adam() if optimizer is None else optimizer
    source = None if statistics_from is None else check_statistics_from(statistics_from)
    settings = {"rank": rank, "alpha": alpha, "target": target, "options": options}
    plain_net = Net(model, key=key, registry=registry)
    candidates = candidates_of(wrappers, plain_net, registry or default_registry(), settings)
    # Not before, because this may use up an iterator. All candidates read the same batches.
    read_batches = list(itertools.islice(batches, steps))
    check_batches(read_batches)
    check_loss(loss, model, read_batches[0])
    error_of = None if keep is None else kept_error(keep, loss, model)
    data = (read_batches[:8], loss) if source is None else (list(source[0]), source[1])
    task = Task(loss, read_batches, steps, optimizer, rates, score, error_of)
    before = None if error_of is None else error_of(model)

    def train(candidate: Candidate, on_step: Callable[[], None]) -> ComparisonRow:
        net = Net(model, key=key, registry=registry)
        adapt(net, candidate, data)
        return task.train(candidate.name, net, on_step)

    rows, interrupted = _train_all(candidates, train, steps * max(1, len(rates)))
    return Comparison(rows, steps, interrupted, rates, before)


def _train_all(
    candidates: Sequence[Candidate],
    train: Callable[[Candidate, Callable[[], None]], ComparisonRow],
    steps_each: int,
) -> tuple[tuple[ComparisonRow, ...], bool]:
    """The rows of the candidates, trained in order, and whether Ctrl-C stopped them."""
    rows: list[ComparisonRow] = []
    try:
        with Bar(len(candidates) * steps_each) as bar:
            for number, candidate in enumerate(candidates):
                bar.update(completed=number * steps_each, what=candidate.name)
                start = time.perf_counter()
                try:
                    row = train(candidate, bar.advance)
                except Exception as err:
                    # Keep the error as text, because its traceback would keep the arrays alive.
                    _LOG.info("The candidate %s failed", candidate.name, exc_info=True)
                    row = ComparisonRow(candidate.name, error=f"{type(err).__name__}: {err}")
                rows.append(row)
                _report(row, time.perf_counter() - start)
    except KeyboardInterrupt:
        return tuple(rows), True
    return tuple(rows), False


def _report(row: ComparisonRow, seconds: float) -> None:
    """Log a finished candidate, and print the line where no bar can be shown."""
    if row.error is not None:
        result = row.error.partition("\n")[0]
    elif row.score is not None:
        result = f"score {row.score:.4g}"
    else:
        result = f"final loss {row.final_loss:.4g}"
    line = f"{row.name}: {result}, {seconds:.1f} s"
    _LOG.info("%s", line)
    if not sys.stderr.isatty():
        print(line, file=sys.stderr, flush=True)
