"""The command `jno-lora convert`."""

from pathlib import Path
from typing import Any

import click

from jno.lora.extending import table
from jno.lora.parts import print_table

from .states.converting import TARGETS, convert_lora

_PATH = click.Path(path_type=Path)
_FEW = 5


@click.command()
@click.argument("source", type=_PATH)
@click.argument("out", type=_PATH)
@click.option("--to", type=click.Choice(TARGETS), required=True, help="What to write.")
@click.option("--base", type=_PATH, help="The weights to merge into, if SOURCE has none.")
@click.option("--alpha", type=float, help="The alpha of LoRA, if it is not in the arrays.")
@click.option("--rename", multiple=True, metavar="REGEX=NAME", help="New names of layers.")
@click.option("--prefix", default="", help="Read only names that start so, such as unet.")
@click.option("--stack-axis", type=click.IntRange(0, 1), help="The axis of scanned layers.")
@click.option("--verify", is_flag=True, help="Read the result, and compare all updates.")
def convert(source: Path, out: Path, rename: tuple[str, ...], **options: Any) -> None:
    """Convert LoRA of another project in SOURCE, or merge it into its base, and write OUT.

    SOURCE is a file or a folder of openpi, gemma, Keras, EasyDeL, Levanter, Qwix, Tunix, MaxText,
    diffusers, kohya or PEFT; its names tell which. No array is dropped: if an array of an adapter
    cannot be converted, an error names it. After a kill, the same command resumes.
    """
    if wrong := [text for text in rename if "=" not in text]:
        raise click.BadParameter(f"{wrong[0]!r} has no '='", param_hint="--rename")
    names = dict(text.split("=", 1) for text in rename)
    done = convert_lora(source, out, rename=names, **options)
    rows = [(name, f"{rank}", f"{scale:g}") for name, (rank, scale) in done.modules.items()]
    columns: Any = [("module", "left"), ("rank", "right"), ("scale", "right")]
    print_table(table(f"{len(rows)} modules of {', '.join(done.sources)}", columns, rows))
    if done.left:
        shown = ", ".join(done.left[:_FEW]) + (", ..." if len(done.left) > _FEW else "")
        click.echo(f"{len(done.left)} arrays are not of the adapter, and were not written: {shown}")
        click.echo("If some of them were trained, use --to merged.")
    if done.difference is not None:
        click.echo(f"Largest difference of an update: {done.difference:g}")
    click.echo(f"Written: {out}")
