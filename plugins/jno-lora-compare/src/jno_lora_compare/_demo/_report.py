"""The printed parts of the demo: the set-up, the table, and where the files are."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from rich.console import Console

from jno.lora.extending import table

from ._candidates import ALPHA, RANK, Outcome
from ._classifier import Score
from ._data import NOISE, ROTATION, Digits


class Merged(NamedTuple):
    """The merged model, read back from `path`, beside the adapted one.

    - `difference`: the largest between two logits; `scale`: the largest logit itself.
    - `same`: for how many of `total` test scans both name the same digit.
    """

    path: Path
    difference: float
    scale: float
    same: int
    total: int


def print_data(console: Console, digits: Digits) -> None:
    """Print the sizes of the groups of scans."""
    _print(
        console,
        f"Source domain: {len(digits.pretraining)} scans of handwritten digits to pretrain on.",
        f"Target domain: rotated by {ROTATION:g} degrees, noise of {NOISE:g}; "
        f"{len(digits.training)} labelled scans to adapt on,",
        f"  {len(digits.validation)} to choose the learning rate and the best adapter.",
        f"Tested on {len(digits.test_target)} other scans, in both domains.",
        "",
    )


def print_pretrained(console: Console, score: Score, parameters: int) -> None:
    """Print the start of all candidates."""
    _print(
        console,
        f"Pretrained {parameters:,} parameters: {score.source:.1%} right on the source domain, "
        f"{score.target:.1%} on the target domain.",
        "",
    )


def print_table(
    console: Console, outcomes: Sequence[Outcome], *, rates: Sequence[float], tested: int
) -> None:
    """Print one row per candidate; below, the error of the numbers (`tested` scans)."""
    # A pipe may have an encoding that lacks the arrow.
    arrow = "->" if console.options.ascii_only else "→"
    numbers = ("trainable\nparameters", "% of\nmodel", f"target %\nbefore {arrow} after")
    numbers += ("source %\nkept", "rate", "ms per\nstep")
    columns = [("adapter", "left"), *((heading, "right") for heading in numbers)]
    rows = (
        (
            outcome.name,
            f"{outcome.row.trainable:,}",
            f"{100 * outcome.share:.2f}",
            f"{100 * outcome.before.target:.1f} {arrow} {100 * outcome.after.target:.1f}",
            f"{100 * outcome.after.source:.1f}",
            "-" if outcome.row.learning_rate is None else f"{outcome.row.learning_rate:g}",
            "-" if not outcome.row.trainable else f"{outcome.row.milliseconds:.2f}",
        )
        for outcome in outcomes
    )
    # At a proportion of a half, where it is largest.
    error = 100 * math.sqrt(0.25 / tested)
    made = table(
        "Accuracy on held-out scans of both domains, after adapting to the target",
        columns,
        rows,
        caption=f"{tested} test scans: standard error up to {error:.1f} points. "
        f"Adapters: rank {RANK}, alpha {ALPHA:g}.\n"
        f"Rate: the best of {', '.join(f'{rate:g}' for rate in rates)} on the validation scans.",
    ).__rich__()
    made.pad_edge, made.collapse_padding = False, True  # 80 columns are enough
    console.print(made)
    console.print()


def print_files(console: Console, plot: Path, best: Outcome, merged: Merged) -> None:
    """Print where the plot and the model are, and that the merged model is the adapted one."""
    _print(
        console,
        f"Best adapter on the validation scans: {best.name} ({best.after.validation:.0%} right).",
        f"Its merged model, read back: logits differ by at most {merged.difference:.1e} (the "
        f"largest is {merged.scale:.1f}),",
        f"  predictions agree on {merged.same} of {merged.total} scans.",
        "",
        f"Plot:         {plot}",
        f"Merged model: {merged.path}",
    )


def _print(console: Console, *lines: str) -> None:
    for line in lines:
        # As it is: no markup, no colours for numbers, and a path is never broken.
        console.print(line, markup=False, highlight=False, soft_wrap=True)
