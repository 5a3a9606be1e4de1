"""The command `jno-lora inspect-peft`."""

import json
from typing import Any

import click

from jno.lora import Table
from jno.lora.extending import print_table, show_path, table


@click.command(name="inspect-peft")
@click.argument("place", metavar="DIRECTORY | REPOSITORY")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, with stable keys.")
@click.option("--values", is_flag=True, help="Read the arrays as well, and count NaN and infinity.")
@click.option("--revision", help="A branch, a tag or a commit of a repository of the Hub.")
def inspect_peft(place: str, as_json: bool, values: bool, revision: str | None) -> None:
    """Show the contents of an adapter of PEFT. No code of the adapter runs.

    A REPOSITORY of the Hugging Face Hub, such as org/name, is looked for if no directory has this
    name.
    """
    from .inspecting import inspect_peft

    facts = inspect_peft(place, revision=revision, values=values)
    if as_json:
        click.echo(json.dumps(facts, indent=2))
    else:
        print_table(_as_table(facts))


def _as_table(facts: dict[str, Any]) -> Table:
    rows = [
        (
            show_path(module["module"]),
            "; ".join(f"{name} {x['dtype']} {x['shape']}" for name, x in module["arrays"].items()),
            f"{module['numbers']:,}",
            f"{module['bytes']:,}",
        )
        for module in facts["modules"]
    ]
    columns = [("module", "left"), ("arrays", "left"), ("numbers", "right"), ("bytes", "right")]
    names = ("directory", "revision", "arrays", "numbers", "bytes", "shared", "refused")
    lines = [f"{name}: {facts[name]}" for name in names if facts[name]]
    lines += (f"setting: {name} = {json.dumps(x)}" for name, x in facts["settings"].items())
    for server, reasons in facts["servers"].items():
        lines += [f"not for {server}: {reason}" for reason in reasons]
    lines += (f"NaN or inf: {line}" for line in facts.get("non_finite", ()))
    title = f"PEFT {facts['peft_type']}, {len(facts['modules'])} modules"
    return table(title, columns, rows, "\n".join(lines))
