"""The commands `jno-lora new` and `jno-lora check`. Each imports what it needs."""

import os
import sys
from pathlib import Path

import click

from jno.lora import __version__, registered


@click.command()
@click.argument("name")
@click.option(
    "--layer",
    type=click.Choice(["linear", "embedding"]),
    help="The layer to wrap. By default the layer in NAME, or linear. For a layer of another "
    "class, replace Linear by the class in the files that are written.",
)
@click.option(
    "--kind",
    type=click.Choice(["method", "layer", "opaque", "router", "command"]),
    default="opaque",
    help="A method for all kinds of layer of the zoo; a kind of layer for all methods; an adapter "
    "of one class of layer (the default); a router of low-rank experts; or a command of jno-lora.",
)
@click.option("--method", is_flag=True, help="The same as --kind method.")
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("."),
    help="Where the plugin's folder is made.",
)
def new(name: str, layer: str | None, kind: str, method: bool, output: Path) -> None:
    """Write a plugin to start from: files that work, one of which you edit.

    NAME is the name of the adapter, method, kind of layer, router or command, such as
    embedding-bias.
    """
    if method and kind not in ("method", "opaque"):
        raise click.BadParameter(f"`--method` is `--kind method`, and not `--kind {kind}`")
    kind = "method" if method else kind
    if kind != "opaque" and layer is not None:
        raise click.BadParameter(f"a {kind} does not wrap this layer alone: leave `--layer` out")
    from . import _new

    target = _new.create(name, kind, layer, output, __version__, registered())
    (package,) = target.glob("src/*")
    click.echo(f"Written: {target}")
    click.echo(f"Edit:    {package / '__init__.py'}")
    click.echo(f'Next:    cd {target} && pip install -e ".[test]" && pytest')


@click.command()
@click.argument("what", metavar="MODULE:CLASS | MODULE:CASES | DISTRIBUTION")
@click.option("--only", multiple=True, metavar="CHECK", help="Run this check; *-merge* is several.")
@click.option("--layer", "layers", multiple=True, help="Run on this layer, such as Linear.")
@click.option("--rank", type=click.IntRange(min=1), help="The rank of the adapters. By default 2.")
@click.option(
    "--fast",
    is_flag=True,
    help="Run only the checks on which others depend, on one case, until one fails.",
)
@click.option("--strict", is_flag=True, help="Exit with 1 if there is advice, too.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, with stable keys.")
@click.option(
    "--badge",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write the tier as an SVG to this file; a file .json is for the endpoint of shields.io.",
)
@click.pass_context
def check(
    ctx: click.Context,
    what: str,
    only: tuple[str, ...],
    layers: tuple[str, ...],
    rank: int | None,
    fast: bool,
    strict: bool,
    as_json: bool,
    badge: Path | None,
) -> None:
    """Run the conformance kit on an adapter class, on cases, or on all adapters of a plugin.

    Every check runs on every common Equinox layer that an adapter claims. For layers of your own,
    CASES is a list of `jno_lora_testing.WrapperCase`, or a function that returns a list. Exits
    with 1 if a required check fails: users rely on it. Advice is printed, too. The tier says what
    users may rely on: an adapter works, is solid, or is complete. --only and --layer can be given
    several times.
    """
    # Read when JAX computes first: devices for the checks of sharding and statistics.
    os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")
    from . import _check
    from ._run import messages
    from ._tiers import tier_of, write_badge

    # The module may lie where the command is run, as for `python -m pytest`.
    sys.path.insert(0, "")
    named = _check.imported(what) if ":" in what else None
    if named is None:
        cases, unchecked = _check.cases_of(what, registered(), layers)
    elif _check.is_adapter_class(named):
        cases, unchecked = _check.common_cases([named], layers)
    elif layers:
        raise click.BadParameter("--layer chooses common layers; cases have layers already")
    else:
        cases, unchecked = _check.cases_in(what, named), ""
    results = _check.run(cases, only, rank, fast=fast) if cases else []
    if fast and results:
        unchecked = f"{len(results)} checks of 1 of {len(cases)} cases. Without --fast, all run."
    click.echo((_check.as_json if as_json else _check.as_table)(results, unchecked))
    if badge is not None and results:
        badge.parent.mkdir(parents=True, exist_ok=True)
        write_badge(badge, None if unchecked else tier_of(results))
    broken = [result for result in results if result.error and result.level == "required"]
    advice = [result for result in results if result.error and result.level == "advice"]
    if named is None and results and not (as_json or only or fast):
        tier = None if unchecked else tier_of(results)
        click.echo(_check.overstated(what, tier), nl=False)
    for message in () if as_json else messages(results):
        click.echo(f"\n{message}")
    ctx.exit(1 if broken or (strict and advice) else 0)
