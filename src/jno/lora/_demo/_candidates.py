"""What the demo compares: no adaptation, full fine-tuning, and the zoo by name."""

import dataclasses
from collections.abc import Callable

import equinox as eqx
import jax

from .._comparing import Fit
from .._net import Net
from .._reports import count
from ._data import Digits
from ._measuring import Score, measure
from ._model import Classifier
from ._training import fit

NOTHING, EVERYTHING = "no adaptation", "full fine-tuning"
ADAPTERS = (
    "lora",
    "rslora",
    "lora-fa",
    "dora",
    "pissa",
    "milora",
    "lora-xs",
    "vera",
    "ia3",
    "lokr",
    "oft",
)
CANDIDATES = (NOTHING, EVERYTHING, *ADAPTERS)

# The same for every adapter. Their quotient is the scale of most methods, and 1 is PiSSA's.
RANK, ALPHA = 8, 8.0


@dataclasses.dataclass(frozen=True)
class Outcome:
    """One row of the table.

    - `trainable`: how many parameters train; `share`: the same over those of the plain model.
    - `before`, `after`: the scores before and after training.
    - `rate`: the learning rate that the validation scans chose; `milliseconds`: the median step.
        Both are `None` where nothing trains.
    """

    name: str
    net: Net
    trainable: int
    share: float
    before: Score
    after: Score
    rate: float | None
    milliseconds: float | None


def net_for(name: str, model: Classifier, seed: int) -> Net:
    """The model, ready to train as the candidate `name` does."""
    net = Net(model, key=jax.random.key(seed))
    if name == EVERYTHING:
        return net
    net.freeze()
    if name == NOTHING:
        return net
    # A variant's name selects its adapters for every kind of layer: here Linear and Conv.
    return net.lora(rank=RANK, alpha=ALPHA, wrapper=name)


def adapt(
    name: str,
    model: Classifier,
    digits: Digits,
    *,
    rates: tuple[float, ...],
    epochs: int,
    seed: int,
    on_epoch: Callable[[], None],
) -> Outcome:
    """Train one candidate at every rate, and keep what is best on the validation scans."""
    net = net_for(name, model, seed)
    trainable, frozen = net.partition()
    before = measure(net.module, digits)
    number = count(net.module, net.trainable)
    share = number / count(model, Net(model).trainable)
    if name == NOTHING:
        return Outcome(name, net, number, share, before, before, None, None)

    def fit_at(rate: float) -> Fit:
        return fit(
            trainable,
            frozen,
            digits.training,
            rate=rate,
            epochs=epochs,
            seed=seed,
            on_epoch=on_epoch,
        )

    fits = [fit_at(rate) for rate in rates]
    scores = [measure(eqx.combine(made.trainable, frozen), digits) for made in fits]
    best = max(range(len(rates)), key=lambda i: scores[i].rank)
    net.update(fits[best].trainable)
    step = fits[best].milliseconds
    return Outcome(name, net, number, share, before, scores[best], rates[best], step)
