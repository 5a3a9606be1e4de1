"""The commands `jno-lora compare` and `jno-lora demo`."""

import pkgutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from jno.lora import PluginError, SelectionError
from jno.lora.extending import imported_for, print_table
from jno_lora_combine import new_picture

_FILE = click.Path(dir_okay=False, path_type=Path)

_EXAMPLE = """
    def task():
        return {
            "model": model,
            "loss": lambda model, batch: ...,  # a scalar
            "batches": [batch, ...],
            "wrappers": ["lora", "dora", MyAdapter, "full"],
            "steps": 200,
            "key": jax.random.key(0),
        }
"""


@click.command()
@click.argument("task", metavar="MODULE:FACTORY")
@click.option("--csv", "csv_file", type=_FILE, help="Write the table to this file, too.")
@click.option(
    "--plot",
    "plot_file",
    type=_FILE,
    help="Draw losses and parameters into this file (.png, .svg, .pdf).",
)
@click.pass_context
def compare(ctx: click.Context, task: str, csv_file: Path | None, plot_file: Path | None) -> None:
    """Train adapters side by side on a model of yours.

    FACTORY is a function without arguments that returns a dict: the arguments of
    jno_lora_compare.compare. Each candidate is trained from the same start, on the same batches,
    for as many steps. Ctrl-C keeps the finished candidates. Exits with 1 if a candidate could not
    be trained.
    """
    from ._compare import compare as compare_

    # Check the files now, and not after training.
    for file, option in ((csv_file, "--csv"), (plot_file, "--plot")):
        if file is not None and not file.parent.is_dir():
            raise click.BadParameter(
                f"there is no directory {str(file.parent)!r}. Make it first.", param_hint=option
            )
    if plot_file is not None:
        new_picture(1, 1, plot_file)
    # As `python -m` does, because the module may be in the current directory.
    sys.path.insert(0, "")
    comparison = compare_(**_arguments(task))
    print_table(comparison)
    if csv_file is not None:
        comparison.to_csv(csv_file)
    if plot_file is not None:
        comparison.plot(plot_file)
    failed = any(row.error is not None for row in comparison)
    ctx.exit(130 if comparison.interrupted else int(failed))


def _arguments(task: str) -> Mapping[str, Any]:
    """The arguments of `compare` that the function `MODULE:FACTORY` returns."""
    try:
        factory = pkgutil.resolve_name(task)
    except (ImportError, AttributeError, ValueError) as err:
        raise PluginError(
            f"{task!r} cannot be imported: {err}. Give the module's import path and a name in it, "
            "such as my_package.tasks:digits, in a directory where the module can be imported."
        ) from err
    arguments = factory() if callable(factory) else factory
    if not isinstance(arguments, Mapping):
        raise SelectionError(
            f"{task!r} must be a function that returns the arguments of `compare` as a "
            f"dict, but gives a {type(arguments).__name__}. For example:{_EXAMPLE}"
        )
    return arguments


# The functions that run the demos, and the libraries of the extra `demo`.
_DEMOS = {
    "digits": "jno_lora_demos.digits:run_demo",
    "operator": "jno_lora_demos.operator:run_operator",
    "family": "jno_lora_demos.family:run_family",
}
_LIBRARIES = ("matplotlib", "optax", "scipy", "sklearn", "foundax")
_LIBRARIES += ("jno_lora_foundax", "jno_lora_conditional")


@click.command()
@click.option(
    "--task",
    type=click.Choice([*_DEMOS]),
    default="digits",
    show_default=True,
    help="A classifier of digits, a neural operator, or an operator at every viscosity.",
)
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("demo-output"),
    show_default=True,
    help="A directory for the plot and the merged model. Made if it does not exist.",
)
@click.option(
    "--seed",
    type=click.IntRange(0, 2**32 - 1),
    default=0,
    show_default=True,
    help="Decides the split, the noise and all initial values.",
)
@click.option(
    "--quick",
    is_flag=True,
    help="Train only to see that everything runs; the accuracies mean nothing.",
)
def demo(task: str, output: Path, seed: int, quick: bool) -> None:
    """Compare adapters on a small task, in about a minute on two cores.

    Digits: pretrains a small classifier on upright scans, moves on to rotated and noisy scans, of
    which few are labelled, and adapts with eleven methods of the zoo, beside full fine-tuning and
    no adaptation. Prints one table, saves a plot and the merged best model, and shows that the
    merged model agrees with the adapted model.

    Operator: pretrains a Fourier neural operator on simulations of the Burgers equation, and adapts
    it to another viscosity, with few simulations.

    Family: adapts the operator once to all viscosities, with simulations at four of them, and
    recovers the viscosity of a simulation. Needs jno-lora-conditional.
    """
    with imported_for("The demo", "demo", *_LIBRARIES):
        run = pkgutil.resolve_name(_DEMOS[task])
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as err:
        raise click.BadParameter(
            f"cannot make the directory: {err}", param_hint="--output"
        ) from err
    run(output, seed=seed, quick=quick)
