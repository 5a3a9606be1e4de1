"""The demo from beginning to end."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import jax
from rich.console import Console

from .._net import Net
from .._registry import default_registry
from .._reports import count
from .._showing import Bar
from ._candidates import ADAPTERS, CANDIDATES, NOTHING, Outcome, adapt
from ._data import Digits, load
from ._measuring import measure
from ._merging import Merged, save_and_compare
from ._model import Classifier
from ._plot import save_plot
from ._report import print_data, print_files, print_pretrained, print_table
from ._training import fit


@dataclasses.dataclass(frozen=True)
class Effort:
    """How long is trained, and how many learning rates are tried. The same for every candidate."""

    pretraining_epochs: int
    epochs: int
    rates: tuple[float, ...]

    @property
    def total_epochs(self) -> int:
        """Those of pretraining, and of every candidate that trains at every rate."""
        trained = sum(name != NOTHING for name in CANDIDATES)
        return self.pretraining_epochs + trained * len(self.rates) * self.epochs


FULL = Effort(pretraining_epochs=20, epochs=30, rates=(1e-3, 3e-3, 1e-2, 3e-2))
QUICK = Effort(pretraining_epochs=4, epochs=4, rates=(3e-3,))
_PRETRAINING_RATE = 1e-3


@dataclasses.dataclass(frozen=True)
class Demo:
    """What came of a run: one outcome per candidate, the best adapter's merged model, the plot."""

    outcomes: tuple[Outcome, ...]
    best: Outcome
    merged: Merged
    plot: Path


def run_demo(output: Path, *, seed: int = 0, quick: bool = False) -> Demo:
    """Pretrain, shift the domain, adapt in every way, and report.

    **Arguments:**

    - `output`: an existing directory for the plot and the merged model.
    - `seed`: decides the split, the noise, the initial values and the order of the batches. The
        same seed gives the same numbers (but for times) on the same machine.
    - `quick`: train so little that the numbers mean nothing, to see that everything runs.

    **Returns:** what it printed, as numbers.

    **Raises:** `PluginError` if the zoo is not installed.
    """
    default_registry().defaults()  # without the zoo, say so now and not after pretraining
    effort = QUICK if quick else FULL
    console = Console()
    if not console.is_terminal:
        console = Console(width=100)  # a pipe has no width of its own
    digits = load(seed)
    print_data(console, digits)
    outcomes = _train_all(console, digits, effort, seed)
    print_table(console, outcomes, rates=effort.rates, tested=len(digits.test_target))
    best = max((o for o in outcomes if o.name in ADAPTERS), key=lambda o: o.after.rank)
    merged = save_and_compare(best, digits, output / "merged.eqx")
    plot = output / "demo.png"
    save_plot(outcomes, plot)
    print_files(console, plot, best, merged)
    return Demo(outcomes, best, merged, plot)


def _train_all(console: Console, digits: Digits, effort: Effort, seed: int) -> tuple[Outcome, ...]:
    """Pretrain one model and adapt it in every way, with a progress bar over all of it."""
    with Bar(effort.total_epochs, "pretraining", console=console) as bar:
        model = _pretrained(digits, effort, seed, bar.advance)
        print_pretrained(console, measure(model, digits), count(model, Net(model).trainable))
        outcomes: list[Outcome] = []
        for name in CANDIDATES:
            bar.update(what=name)
            outcomes.append(
                adapt(
                    name,
                    model,
                    digits,
                    rates=effort.rates,
                    epochs=effort.epochs,
                    seed=seed,
                    on_epoch=bar.advance,
                )
            )
    return tuple(outcomes)


def _pretrained(
    digits: Digits, effort: Effort, seed: int, on_epoch: Callable[[], None]
) -> Classifier:
    net = Net(Classifier(jax.random.key(seed)))
    made = fit(
        *net.partition(),
        digits.pretraining,
        rate=_PRETRAINING_RATE,
        epochs=effort.pretraining_epochs,
        seed=seed,
        on_epoch=on_epoch,
    )
    return net.update(made.trainable).module
