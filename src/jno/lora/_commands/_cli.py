"""The command line: `jno-lora COMMAND`, and `python -m jno.lora COMMAND`."""

import json
import sys
from pathlib import Path
from typing import Any

import click

from .._errors import JnoLoraError, imported_for


class _Group(click.Group):
    """Commands whose errors, and those of files, are messages for the user, not tracebacks."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except JnoLoraError as err:
            raise click.ClickException(str(err)) from err
        except BrokenPipeError:
            raise  # whoever reads what is printed has enough; click ends quietly
        except OSError as err:
            raise click.ClickException(str(err)) from err


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="jno-lora")
def cli() -> None:
    """Adapters (LoRA and its relatives) for Equinox models, as plugins."""


@cli.command()
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("demo-output"),
    show_default=True,
    help="Where the plot and the merged model go. Made if it does not exist.",
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
    help="Train for a moment only: everything runs, the accuracies mean nothing.",
)
def demo(output: Path, seed: int, quick: bool) -> None:
    """Compare the zoo's adapters on real scans of digits.

    Pretrains a small classifier on upright digits, moves on to rotated and noisy ones of which few
    are labelled, and adapts with every method of the zoo, beside full fine-tuning and no
    adaptation. Prints one table, saves a plot and the merged best model, and shows that merged and
    adapted agree. Takes about a minute on two cores.
    """
    with imported_for("The demo", "demo", "matplotlib", "optax", "scipy", "sklearn"):
        from .._demo import run_demo
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as err:
        raise click.BadParameter(
            f"cannot make the directory: {err}", param_hint="--output"
        ) from err
    run_demo(output, seed=seed, quick=quick)


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON, with stable keys.")
def plugins(as_json: bool) -> None:
    """List the installed plugins, the broken ones too."""
    from . import listing

    found = listing.records()
    if as_json:
        _print_json(listing.plugins_as_json(found))
    else:
        _print(listing.plugins_as_table(found))


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON, with stable keys.")
def adapters(as_json: bool) -> None:
    """List the adapters: what they are for, what they cost, where they come from."""
    from . import listing

    found = listing.adapters_as_json(listing.records())
    if as_json:
        _print_json(found)
    else:
        _print(listing.adapters_as_table(found))


@cli.command()
@click.pass_context
def doctor(ctx: click.Context) -> None:
    """Look for trouble in this installation. Exits with 1 if there is any."""
    from . import doctor as doctor_, listing

    diagnosis = doctor_.diagnose(listing.records())
    width = max(len(name) for name, _ in diagnosis.facts)
    for name, value in diagnosis.facts:
        click.echo(f"{name:<{width}}  {value}")
    for trouble in diagnosis.troubles:
        click.echo(f"\nTROUBLE: {trouble}")
    count = len(diagnosis.troubles)
    click.echo(f"\n{count} {'trouble' if count == 1 else 'troubles'} found.")
    ctx.exit(1 if diagnosis.troubles else 0)


@cli.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print JSON, with stable keys.")
@click.option("--values", is_flag=True, help="Read the arrays as well, and count NaN and infinity.")
def inspect(file: Path, as_json: bool, values: bool) -> None:
    """Show what a file of adapters holds. No plugin is imported, and no model is needed."""
    from . import inspection

    found = inspection.inspect(file, values=values)
    if as_json:
        _print_json(found)
    else:
        _print(inspection.as_table(found))


@cli.command()
@click.argument("name")
@click.option(
    "--layer",
    type=click.Choice(["linear", "embedding"]),
    help="What the adapter wraps. By default what NAME says, else a linear layer.",
)
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("."),
    help="The directory in which the plugin's folder is made.",
)
def new(name: str, layer: str | None, output: Path) -> None:
    """Write a plugin to start from: six files that work.

    NAME is what the adapter is called, such as embedding-bias.
    """
    from .. import __version__
    from . import listing, scaffold

    target = scaffold.create(name, layer, output, __version__, listing.records())
    click.echo(f"Written: {target}")
    click.echo(f'Next:    cd {target} && pip install -e ".[test]" && pytest')


@cli.command()
@click.argument("what", metavar="MODULE:CLASS | DISTRIBUTION")
@click.option("--strict", is_flag=True, help="Exit with 1 if there is advice, too.")
@click.pass_context
def check(ctx: click.Context, what: str, strict: bool) -> None:
    """Run the conformance kit on an adapter class, or on all adapters of a plugin.

    Every check runs on every common Equinox layer that an adapter claims. Exits with 1 if a
    required one fails: users rely on those. Advice is printed, too.
    """
    from . import check as check_, listing

    # The module may lie where the command is run, as for `python -m pytest`.
    sys.path.insert(0, "")
    colon = ":" in what
    results, left_out = check_.run(check_.find_wrappers(what, () if colon else listing.records()))
    _print(check_.as_table(results, left_out))
    for result in check_.failures(results, strict=True):
        advice = "Advice: " if result.level == "advice" else ""
        click.echo(f"\n{advice}{result.error}")
    ctx.exit(1 if check_.failures(results, strict=strict) else 0)


@cli.command()
@click.argument("what", metavar="MODULE:FACTORY")
@click.option(
    "--csv",
    "csv_file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write the table to this file, too.",
)
@click.option(
    "--plot",
    "plot_file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Draw losses and parameters into this file (.png, .svg, .pdf).",
)
@click.pass_context
def compare(ctx: click.Context, what: str, csv_file: Path | None, plot_file: Path | None) -> None:
    """Train adapters side by side on a model of yours.

    FACTORY is a function without arguments that returns a dict: the arguments of
    jno.lora.compare. Each candidate is trained from the same start, on the same batches, for as
    many steps. Ctrl-C keeps what is finished. Exits with 1 if a candidate could not be trained.
    """
    from . import compare as compare_

    # Said now, and not after training.
    _check_directory_of(csv_file, "--csv")
    _check_directory_of(plot_file, "--plot")
    if plot_file is not None:
        with imported_for("--plot", "plot", "matplotlib"):
            from .._showing.plots import check_ending
        check_ending(plot_file)
    # The module may lie where the command is run, as for `python -m pytest`.
    sys.path.insert(0, "")
    comparison = compare_.run(what)
    _print(comparison)
    if csv_file is not None:
        comparison.to_csv(csv_file)
    if plot_file is not None:
        comparison.plot(plot_file)
    if comparison.interrupted:
        ctx.exit(130)
    ctx.exit(1 if any(row.error is not None for row in comparison) else 0)


def _check_directory_of(file: Path | None, option: str) -> None:
    if file is not None and not file.parent.is_dir():
        raise click.BadParameter(
            f"there is no directory {str(file.parent)!r}. Make it first.", param_hint=option
        )


def _print(table: Any) -> None:
    """A table: with colours and lines in a terminal, as plain text of full width when piped."""
    if sys.stdout.isatty():
        from rich.console import Console

        Console().print(table)
    else:
        click.echo(str(table))


def _print_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=2))
