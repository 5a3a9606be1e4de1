"""The demo from beginning to end."""

from pathlib import Path
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from rich.console import Console

from jno.lora import Net, merge_lora
from jno.lora.extending import Bar, default_registry

from .._fitting import Trainer, number_of
from ._candidates import ADAPTERS, Outcome, adapt
from ._classifier import Classifier, batches_of, logits_of, loss, measure
from ._data import Digits, load
from ._plot import save_plot
from ._report import Merged, print_data, print_files, print_pretrained, print_table


class Effort(NamedTuple):
    """The epochs of training, and the learning rates to try. The same for every candidate."""

    pretraining_epochs: int
    epochs: int
    rates: tuple[float, ...]


FULL = Effort(pretraining_epochs=20, epochs=30, rates=(1e-3, 3e-3, 1e-2, 3e-2))
QUICK = Effort(pretraining_epochs=4, epochs=4, rates=(3e-3,))
_PRETRAINING_RATE = 1e-3


class Demo(NamedTuple):
    """The results: one outcome per candidate, the best adapter's merged model, and the plot."""

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
    parameters = number_of(Net(model).partition()[0])
    print_pretrained(console, measure(model, digits), parameters)
    outcomes = adapt(model, digits, rates=effort.rates, epochs=effort.epochs, seed=seed)
    print_table(console, outcomes, rates=effort.rates, tested=len(digits.test_target))
    best = max((o for o in outcomes if o.name in ADAPTERS), key=lambda o: o.after.order)
    merged = _merged(best, digits, output / "merged.eqx")
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


def _merged(best: Outcome, digits: Digits, path: Path) -> Merged:
    """Merge, write, read into a plain `Classifier`, and compare on the test scans of both domains.

    The reader needs Equinox and the class of the model, and nothing of adapters.
    """
    adapted = best.row.model
    eqx.tree_serialise_leaves(path, merge_lora(adapted))
    skeleton = eqx.filter_eval_shape(Classifier, jax.random.key(0))
    merged = eqx.tree_deserialise_leaves(path, skeleton)

    images = jnp.concatenate([digits.test_target.images, digits.test_source.images])
    one, other = logits_of(adapted, images), logits_of(merged, images)
    return Merged(
        path=path,
        difference=float(jnp.abs(one - other).max()),
        scale=float(jnp.abs(one).max()),
        same=int((one.argmax(axis=-1) == other.argmax(axis=-1)).sum()),
        total=len(images),
    )
