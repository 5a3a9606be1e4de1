"""The demo from beginning to end."""

import dataclasses
from pathlib import Path

import jax
import optax
from rich.console import Console

from jno.lora import Net
from jno.lora.extending import Bar, default_registry

from .._fitting import Trainer, number_of
from ._candidates import ADAPTERS, Outcome, adapt
from ._data import Digits, load
from ._measuring import measure
from ._merging import Merged, save_and_compare
from ._model import Classifier
from ._plot import save_plot
from ._report import print_data, print_files, print_pretrained, print_table
from ._training import batches_of, loss


@dataclasses.dataclass(frozen=True)
class Effort:
    """How long is trained, and how many learning rates are tried. The same for every candidate."""

    pretraining_epochs: int
    epochs: int
    rates: tuple[float, ...]


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
    model = _pretrained(console, digits, effort, seed)
    print_pretrained(console, measure(model, digits), number_of(Net(model).partition()[0]))
    outcomes = adapt(model, digits, rates=effort.rates, epochs=effort.epochs, seed=seed)
    print_table(console, outcomes, rates=effort.rates, tested=len(digits.test_target))
    best = max((o for o in outcomes if o.name in ADAPTERS), key=lambda o: o.after.rank)
    merged = save_and_compare(best, digits, output / "merged.eqx")
    plot = output / "demo.png"
    save_plot(outcomes, plot)
    print_files(console, plot, best, merged)
    return Demo(outcomes, best, merged, plot)


def _pretrained(console: Console, digits: Digits, effort: Effort, seed: int) -> Classifier:
    net = Net(Classifier(jax.random.key(seed)))
    batches = list(batches_of(digits.pretraining, epochs=effort.pretraining_epochs, seed=seed))
    with Bar(len(batches), "Pretraining", console=console) as bar:
        trainer = Trainer(loss, optax.adam(_PRETRAINING_RATE))
        made = trainer.fit(*net.partition(), batches, on_step=bar.advance)
    return net.update(made.trainable).module
