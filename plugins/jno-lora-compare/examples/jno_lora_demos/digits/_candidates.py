"""The candidates of the demo: no adaptation, full fine-tuning, and eleven methods by name."""

from typing import NamedTuple

import jax

from jno.lora import Net, WrapperError
from jno_lora_compare import ComparisonRow, compare
from jno_lora_compare._fitting import parameter_count

from ._classifier import Classifier, Score, batches_of, loss, measure
from ._data import Digits

ADAPTERS = (
    *("lora", "rslora", "lora-fa", "dora", "pissa", "milora"),
    *("lora-xs", "vera", "ia3", "lokr", "oft"),
)
NOTHING, EVERYTHING = "no adaptation", "full fine-tuning"
# As `compare` calls them.
CANDIDATES = {NOTHING: "none", EVERYTHING: "full", **dict(zip(ADAPTERS, ADAPTERS, strict=True))}

# The same for every adapter. Most methods scale by alpha / rank, and PiSSA by 1.
RANK, ALPHA = 8, 8.0


class Outcome(NamedTuple):
    """One row of the table, with the scores before and after training."""

    name: str
    row: ComparisonRow  # at the learning rate that the validation scans chose
    share: float  # the trainable fraction of the plain model's parameters
    before: Score
    after: Score


def adapt(
    model: Classifier, digits: Digits, *, rates: tuple[float, ...], epochs: int, seed: int
) -> tuple[Outcome, ...]:
    """Train every candidate at every rate, and keep the rate that is best on validation scans."""
    batches = list(batches_of(digits.training, epochs=epochs, seed=seed))
    comparison = compare(
        model,
        loss,
        batches,
        # A variant's name selects its adapters for every kind of layer: here Linear and Conv.
        list(CANDIDATES.values()),
        steps=len(batches),
        key=jax.random.key(seed),
        rank=RANK,
        alpha=ALPHA,
        learning_rate=rates,
        score=lambda model: measure(model, digits).order,
    )
    if comparison.interrupted:
        raise KeyboardInterrupt
    for row in comparison:
        if row.error is not None:
            raise WrapperError(f"The demo cannot train {row.name}: {row.error}")
    parameters, before = parameter_count(Net(model).partition()[0]), measure(model, digits)
    return tuple(
        Outcome(name, row, (row.trainable or 0) / parameters, before, measure(row.model, digits))
        for name, row in zip(CANDIDATES, comparison, strict=True)
    )
