"""Run the whole demo, print its results and plot them."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from matplotlib.axes import Axes
from rich.console import Console

from jno.lora import Net, merge_lora
from jno.lora.extending import Bar, default_registry, table
from jno_lora_combine import new_picture
from jno_lora_compare._fitting import parameter_count
from jno_lora_train import Trainer

from .._output import new_console, say, suggest_commands
from ._candidates import ADAPTERS, ALPHA, RANK, Outcome, adapt
from ._classifier import Classifier, batches_of, logits_of, loss, measure
from ._data import NOISE, ROTATION, TEST, Digits, load


class Effort(NamedTuple):
    pretraining_epochs: int
    epochs: int
    rates: tuple[float, ...]


FULL = Effort(pretraining_epochs=20, epochs=30, rates=(1e-3, 3e-3, 1e-2, 3e-2))
QUICK = Effort(pretraining_epochs=4, epochs=4, rates=(3e-3,))
# The markers of the plot differ in lightness and shape, and not only in hue.
_TARGET, _SOURCE, _QUIET = "#0b5fa5", "#e08a00", "#b8b8b8"


class Merged(NamedTuple):
    """The merged model, read back from `path`, compared with the adapted model."""

    path: Path
    difference: float  # the largest difference of two logits
    scale: float  # the largest logit
    agreeing: int  # for how many of `total` test scans both models predict the same digit
    total: int


class Demo(NamedTuple):
    outcomes: tuple[Outcome, ...]
    best: Outcome  # of the adapters
    merged: Merged
    plot: Path


def run_demo(output: Path, *, seed: int = 0, quick: bool = False) -> Demo:
    """Pretrain, shift the domain, adapt with each method, report, and return the numbers.

    The same seed gives the same numbers, except times, on the same machine.
    """
    default_registry().defaults()  # raises before pretraining if the zoo is missing
    effort = QUICK if quick else FULL
    console = new_console()
    digits = load(seed)
    _print_data(console, digits)
    model = pretrained(console, digits, effort, seed)
    parameters, score = parameter_count(Net(model).partition()[0]), measure(model, digits)
    say(
        console,
        f"Pretrained {parameters:,} parameters: {score.source:.1%} right on the source domain, "
        f"{score.target:.1%} on the target domain.",
        "",
    )
    outcomes = adapt(model, digits, rates=effort.rates, epochs=effort.epochs, seed=seed)
    _print_table(console, outcomes, effort.rates)
    adapted = [outcome for outcome in outcomes if outcome.name in ADAPTERS]
    best = max(adapted, key=lambda outcome: outcome.after.order)
    merged = _merge(best, digits, output / "merged.eqx")
    plot = output / "demo.png"
    _save_plot(outcomes, plot)
    _print_files(console, plot, best, merged)
    suggest_commands(console, "jno-lora demo --task operator", "a neural operator, to new physics")
    return Demo(outcomes, best, merged, plot)


def pretrained(console: Console, digits: Digits, effort: Effort, seed: int) -> Classifier:
    """The classifier, trained on the source domain."""
    net = Net(Classifier(jax.random.key(seed)))
    batches = list(batches_of(digits.pretraining, epochs=effort.pretraining_epochs, seed=seed))
    with Bar(len(batches), "Pretraining", console=console) as bar:
        trainer = Trainer(loss, optax.adam(1e-3))
        fit = trainer.fit(*net.partition(), batches, on_step=bar.advance)
    return net.update(fit.trainable).module


def _merge(best: Outcome, digits: Digits, path: Path) -> Merged:
    """Merge, write, read with Equinox alone, and compare on the test scans of both domains."""
    eqx.tree_serialise_leaves(path, merge_lora(best.row.model))
    skeleton = eqx.filter_eval_shape(Classifier, jax.random.key(0))
    merged = eqx.tree_deserialise_leaves(path, skeleton)
    images = jnp.concatenate([digits.test_target.images, digits.test_source.images])
    logits, merged_logits = logits_of(best.row.model, images), logits_of(merged, images)
    return Merged(
        path=path,
        difference=float(jnp.abs(logits - merged_logits).max()),
        scale=float(jnp.abs(logits).max()),
        agreeing=int((logits.argmax(axis=-1) == merged_logits.argmax(axis=-1)).sum()),
        total=len(images),
    )


def _print_data(console: Console, digits: Digits) -> None:
    say(
        console,
        f"Source domain: {len(digits.pretraining)} scans of handwritten digits to pretrain on.",
        f"Target domain: rotated by {ROTATION:g} degrees, noise of {NOISE:g}; "
        f"{len(digits.training)} labelled scans to adapt on,",
        f"  {len(digits.validation)} to choose the learning rate and the best adapter.",
        f"Tested on {len(digits.test_target)} other scans, in both domains.",
        "",
    )


def _print_table(console: Console, outcomes: Sequence[Outcome], rates: Sequence[float]) -> None:
    # The encoding of a pipe may not have the arrow.
    arrow = "->" if console.options.ascii_only else "→"
    headings = ("trainable\nparameters", "% of\nmodel", f"target %\nbefore {arrow} after")
    headings += ("source %\nkept", "rate", "ms per\nstep")
    columns = [("adapter", "left"), *((heading, "right") for heading in headings)]
    rows: list[tuple[str, ...]] = []
    for name, row, share, before, after in outcomes:
        sizes = (f"{row.trainable:,}", f"{100 * share:.2f}")
        target = f"{100 * before.target:.1f} {arrow} {100 * after.target:.1f}"
        rate = "-" if row.learning_rate is None else f"{row.learning_rate:g}"
        time = f"{row.milliseconds:.2f}" if row.trainable else "-"
        rows.append((name, *sizes, target, f"{100 * after.source:.1f}", rate, time))
    error = 100 * math.sqrt(0.25 / TEST)  # of a proportion: largest at one half
    caption = (
        f"{TEST} test scans: standard error up to {error:.1f} points. "
        f"Adapters: rank {RANK}, alpha {ALPHA:g}.\n"
        f"Rate: the best of {', '.join(f'{rate:g}' for rate in rates)} on the validation scans."
    )
    title = "Accuracy on held-out scans of both domains, after adapting to the target"
    printed = table(title, columns, rows, caption).__rich__()
    printed.pad_edge, printed.collapse_padding = False, True  # to fit 80 columns
    console.print(printed)
    console.print()


def _print_files(console: Console, plot: Path, best: Outcome, merged: Merged) -> None:
    say(
        console,
        f"Best adapter on the validation scans: {best.name} ({best.after.validation:.0%} right).",
        f"Its merged model, read back: logits differ by at most {merged.difference:.1e} (the "
        f"largest is {merged.scale:.1f}),",
        f"  predictions agree on {merged.agreeing} of {merged.total} scans.",
        "",
        f"Plot:         {plot}",
        f"Merged model: {merged.path}",
    )


def _save_plot(outcomes: Sequence[Outcome], path: Path) -> None:
    """Write a PNG with one row per candidate, the most trainable parameters on top."""
    # In a scatter plot, methods with equal counts would overlap.
    rows = sorted(outcomes, key=lambda outcome: outcome.row.trainable or 0)
    figure = new_picture(10, 5.6)
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(2, 3))
    _draw_costs(left, rows)
    _draw_accuracies(right, rows)
    for axes in (left, right):
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(axis="y", length=0)
    title = "Adapting to rotated and noisy digits: parameters, and accuracy in both domains"
    figure.suptitle(title)
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    figure.saved(path)


def _draw_costs(axes: Axes, rows: Sequence[Outcome]) -> None:
    heights = range(len(rows))
    # A logarithmic axis has no zero, so a zero gets only its number, and no bar.
    trainable = [row.row.trainable or 0 for row in rows]
    bars = axes.barh(heights, [max(number, 1) for number in trainable], color=_QUIET, height=0.6)
    axes.bar_label(bars, [f"{row.row.trainable:,} ({row.share:.1%})" for row in rows], padding=4)
    most = max(trainable)
    axes.set(xscale="log", xlim=(1, most**1.8))  # room for the numbers
    axes.set_xticks([10**power for power in range(1 + int(math.log10(most)))])
    axes.minorticks_off()
    axes.set_yticks(heights, [row.name for row in rows])
    axes.set_xlabel("trainable parameters (share of the model)")


def _draw_accuracies(axes: Axes, rows: Sequence[Outcome]) -> None:
    heights = range(len(rows))
    target = [100 * row.after.target for row in rows]
    source = [100 * row.after.source for row in rows]
    axes.hlines(heights, target, source, color=_QUIET, linewidth=1.5, zorder=1)
    for value, color in ((rows[0].before.target, _TARGET), (rows[0].before.source, _SOURCE)):
        axes.axvline(100 * value, color=color, linestyle=":", linewidth=1.2, zorder=0)
    axes.scatter(target, heights, color=_TARGET, s=55, label="target domain (rotated, noisy)")
    axes.scatter(source, heights, color=_SOURCE, s=55, marker="D", label="source domain (upright)")
    axes.plot([], [], color="black", linestyle=":", linewidth=1.2, label="before adapting")
    axes.set_xlim(min(*target, *source) - 4, 101)
    axes.set_xlabel("accuracy on held-out scans after adapting (%)")
