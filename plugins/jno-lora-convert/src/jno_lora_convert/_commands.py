"""The commands `jno-lora convert` and `jno-lora extract`."""

from pathlib import Path
from typing import Any

import click

from jno.lora.extending import print_table, table

_PATH = click.Path(path_type=Path)
_FRACTION = click.FloatRange(0, 1, min_open=True)
_TO = click.Choice(["peft", "merged", "safetensors", "orbax"])


@click.command()
@click.argument("source", type=_PATH)
@click.argument("out", type=_PATH)
@click.option("--to", type=_TO, required=True, help="What to write.")
@click.option("--base", type=_PATH, help="The weights to merge into, if SOURCE has none.")
@click.option("--alpha", type=float, help="The alpha of LoRA, if it is not in the arrays.")
@click.option("--rename", multiple=True, metavar="REGEX=NAME", help="New names of layers.")
@click.option("--prefix", default="", help="Read only names that start so, such as unet.")
@click.option("--stack-axis", type=click.IntRange(0, 1), help="The axis of scanned layers.")
@click.option("--transposed", help="A regex for layers with a weight (in, out), as in GPT-2.")
@click.option("--tied/--untied", default=None, help="Whether a head reads an embedding's table.")
@click.option("--verify", is_flag=True, help="Read the result, and compare all updates.")
def convert(source: Path, out: Path, rename: tuple[str, ...], **options: Any) -> None:
    """Convert LoRA of another project in SOURCE, or merge it into its base, and write OUT.

    SOURCE is a file or a folder of openpi, gemma, Keras, EasyDeL, Levanter, Qwix, Tunix, MaxText,
    diffusers, kohya or PEFT; its names tell which. No array is dropped: if an array of an adapter
    cannot be converted, an error names it. After a kill, the same command resumes.
    """
    from ._convert import convert_lora

    if wrong := [text for text in rename if "=" not in text]:
        raise click.BadParameter(f"{wrong[0]!r} has no '='", param_hint="--rename")
    names = dict(text.rsplit("=", 1) for text in rename)
    done = convert_lora(source, out, rename=names, **options)
    rows = [(name, f"{rank}", f"{scale:g}") for name, (rank, scale) in done.modules.items()]
    columns: Any = [("module", "left"), ("rank", "right"), ("scale", "right")]
    print_table(table(f"{len(rows)} modules of {', '.join(done.sources)}", columns, rows))
    if done.left:
        click.echo(f"{len(done.left)} arrays are not of the adapter, and were not written:")
        click.echo("\n".join([*done.left[:10], "..."][: len(done.left)]))
        if options["to"] != "merged":
            click.echo("If some were trained, --to merged without --base keeps them.")
    if done.difference is not None:
        thing = "a merged weight" if options["to"] == "merged" else "an update"
        click.echo(f"Largest difference of {thing}: {done.difference:g}")
    click.echo(f"Written: {out}")


@click.command()
@click.argument("base", type=click.Path(exists=True))
@click.argument("tuned", type=click.Path(exists=True))
@click.argument("out", type=click.Path(file_okay=False))
@click.option("--rank", type=click.IntRange(1), help="The rank of every layer.")
@click.option("--energy", type=_FRACTION, help="Or the fraction of squared change, such as 0.95.")
@click.option(
    "--leftovers",
    type=click.Choice(["raise", "keep", "drop"]),
    default="raise",
    show_default=True,
    help="Changed biases, norms and bare arrays: fail, write them whole, or leave them out.",
)
@click.option("--embeddings", help="A regex for embeddings, instead of the usual names.")
@click.option("--transposed", help="A regex for layers with a weight (in, out), as in GPT-2.")
@click.option("--tied/--untied", default=None, help="Whether the head reads the embedding's table.")
def extract(base: str, tuned: str, out: str, **options: Any) -> None:
    """Make a LoRA of a full fine-tune: the nearest one to the difference of two models.

    BASE and TUNED are safetensors files, or folders of them, with all weights of the two models.
    OUT must not exist, and becomes a folder that PEFT reads. Prints what each layer loses.
    """
    from ._extract import extract_peft

    given = {name: value for name, value in options.items() if value is not None}
    print_table(extract_peft(base, tuned, out, **given))
