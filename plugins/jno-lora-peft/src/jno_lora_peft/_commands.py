"""The command `jno-lora extract`."""

from typing import Any

import click

from jno.lora.parts import print_table


@click.command()
@click.argument("base", type=click.Path(exists=True))
@click.argument("tuned", type=click.Path(exists=True))
@click.argument("out", type=click.Path(file_okay=False))
@click.option("--rank", type=click.IntRange(1), help="The rank of every layer.")
@click.option(
    "--energy",
    type=click.FloatRange(0, 1, min_open=True),
    help="Instead, the fraction of each layer's squared change to keep, such as 0.95.",
)
@click.option(
    "--leftovers",
    type=click.Choice(["raise", "keep", "drop"]),
    default="raise",
    show_default=True,
    help="Changed biases, norms and bare arrays: fail, write them whole, or leave them out.",
)
@click.option(
    "--embeddings", help="A regex for the names of embeddings, instead of the usual ones."
)
@click.option("--transposed", help="A regex for layers with a weight (in, out), as in GPT-2.")
@click.option("--tied/--untied", default=None, help="Whether the head reads the embedding's table.")
def extract(base: str, tuned: str, out: str, embeddings: str | None, **options: Any) -> None:
    """Make a LoRA of a full fine-tune: the nearest one to the difference of two models.

    BASE and TUNED are safetensors files, or folders of them, with all weights of the two models.
    OUT becomes a folder that PEFT reads. Prints what each layer loses.
    """
    from .extracting import extract_peft

    if embeddings is not None:
        options["embeddings"] = embeddings
    print_table(extract_peft(base, tuned, out, **options))
