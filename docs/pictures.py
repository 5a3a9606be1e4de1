"""Make the pictures and the printed results of the documentation, by running its code.

    make pictures                                        # all: ten minutes on two cores
    make pictures PAGES="getting-started inspecting"     # only for these pages

The output of a code block goes to the comment `<!-- printed -->` after the block. A picture after
the block gets the block's `figure`. The pages of the examples get the output of the scripts.
"""

import contextlib
import functools
import io
import os
import pathlib
import re
import subprocess
import sys
import tempfile
from dataclasses import replace
from typing import Any

from PIL import Image

# Compiled programs and decompositions share two cores better than they fight for them.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

DOCS = pathlib.Path(__file__).parent
ROOT = DOCS.parent
IMAGES = DOCS / "images"
PRINTED = re.compile(r"(<!-- printed -->\n).*?(<!-- /printed -->)", re.DOTALL)
BLOCK = re.compile(
    r"^```python\n(?P<code>.*?)^```\n"
    r"(?:\n(?:<!-- printed -->\n.*?<!-- /printed -->|!\[[^\]]*\]\((?P<picture>\S+)\)))?",
    re.DOTALL | re.MULTILINE,
)
# The scripts, with their arguments and the page that shows what each prints.
SCRIPTS = {
    "burgers": (
        "burgers_operator.py",
        ["--output", str(IMAGES / "burgers.svg")],
        "examples/burgers",
    ),
    "minilm": ("minilm_classification.py", [], "examples/language-models"),
    "llm": ("llm_finetune.py", [], "llm"),
    "quantized-llm": ("quantized_llm.py", [], "examples/language-models"),
    "attention": ("attention_adapter.py", [], "examples/digits"),
    "per-user": ("per_user_adapters.py", [], "examples/digits"),
    "serving": ("serve_many.py", [], "serving"),
    "inverse-viscosity": ("inverse_viscosity.py", [], "examples/inverse-viscosity"),
}


def main(names: list[str]) -> None:
    """Make the named pages, or all pages."""
    makers = {
        "index": lambda: run_page(DOCS / "index.md"),
        "getting-started": lambda: run_page(DOCS / "getting-started.md"),
        "conditional": lambda: [
            run_page(DOCS / "conditional.md"),
            run_page(DOCS / "evidence" / "conditional.md"),
        ],
        "inspecting": lambda: run_page(DOCS / "inspecting.md"),
        "equivariant": lambda: run_page(DOCS / "equivariant.md"),
        "keeping": lambda: run_page(DOCS / "keeping.md"),
        "digits": run_digits,
        "family": run_family,
        "all-methods": run_all_methods,
        "from-data": run_from_data,
        **{name: lambda name=name: run_script(name) for name in SCRIPTS},
    }
    IMAGES.mkdir(exist_ok=True)
    for name in names or makers:
        print(name, flush=True)
        makers[name]()
    for picture in IMAGES.glob("*.png"):
        shrink(picture)


def run_page(page: pathlib.Path) -> None:
    """Run a page's blocks in order, and fill in their output and pictures."""
    namespace: dict[str, object] = {"__name__": page.stem}

    def run(match: re.Match[str]) -> str:
        with contextlib.redirect_stdout(io.StringIO()) as out:
            exec(compile(match["code"], page.name, "exec"), namespace)
        if match["picture"]:
            namespace["figure"].savefig(page.parent / match["picture"])
        return with_printed(match[0], out.getvalue())

    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        text = BLOCK.sub(run, page.read_text())
    page.write_text(text)


def run_script(name: str) -> None:
    """Run an example in full, and put its output on its page."""
    script, arguments, page = SCRIPTS[name]
    command = [sys.executable, ROOT / "examples" / script, *arguments]
    printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    file = DOCS / f"{page}.md"
    before, command_line, after = file.read_text().partition(f"python examples/{script}")
    file.write_text(before + command_line + with_printed(after, printed))


def run_digits() -> None:
    """Run the demo, for its page."""
    from jno_lora_demos.digits import run_demo

    with tempfile.TemporaryDirectory() as folder:
        with contextlib.redirect_stdout(io.StringIO()) as out:
            demo = run_demo(pathlib.Path(folder))
        demo.plot.replace(IMAGES / "digits.png")
    page = DOCS / "examples" / "digits.md"
    # Without the paths at the end.
    page.write_text(with_printed(page.read_text(), out.getvalue().partition("\nPlots:")[0]))


def run_family() -> None:
    """Run the demo of a family of viscosities, for the README's figure and the page's table."""
    from jno_lora_demos.family import draw, draw_example, run_family

    with (
        tempfile.TemporaryDirectory() as folder,
        contextlib.redirect_stdout(io.StringIO()) as out,
    ):
        demo = run_family(pathlib.Path(folder))
    draw(demo, IMAGES / "family.svg")
    draw_example(demo, IMAGES / "family-field.svg")
    page = DOCS / "evidence" / "conditional.md"
    printed = out.getvalue().partition("\nPlots:")[0]
    page.write_text(with_marked(page, "family", f"```text\n{printed.rstrip()}\n```\n"))


def run_all_methods() -> None:
    """Train every method on the digits of the demo, for the page on choosing."""
    comparison = compared_on_digits(["none", "full", "all"])
    comparison.plot(IMAGES / "all-methods.png", times=True)
    page = DOCS / "choosing.md"
    shown = (
        "On the [digits of the demo](examples/digits.md), each at its best of four rates. The\n"
        "score is the accuracy on 150 validation scans.\n\n"
        f"![Score over parameters](images/all-methods.png)\n\n```text\n{comparison}\n```\n"
    )
    page.write_text(with_marked(page, "all-methods", shown))


# Methods that start from data, by name and options, and two to compare them with.
FROM_DATA = {
    "lora": ("lora", {}),
    "pissa": ("pissa", {}),
    "eva": ("eva", {}),
    "corda": ("corda", {}),
    "corda, preserved": ("corda", {"mode": "knowledge-preserved"}),
    "lora-ga": ("lora-ga", {}),
    "lora-one": ("lora-one", {}),
    "lora-one, gamma 2": ("lora-one", {"gamma": 2.0}),
    "lora-one, gamma 2, step": ("lora-one", {"gamma": 2.0, "step": True}),
}


def run_from_data() -> None:
    """Train the methods that start from data on the digits, for the page on choosing."""
    from jno_lora_compare import Comparison
    from jno_lora_demos.digits import _run

    rates = _run.FULL.rates
    comparisons = {
        name: [compared_on_digits([method], options=options, learning_rate=rate) for rate in rates]
        for name, (method, options) in FROM_DATA.items()
    }
    rows = {
        name: [comparison.rows[0] for comparison in at_rates]
        for name, at_rates in comparisons.items()
    }
    best = (min(at_rates, key=lambda row: row.final_loss) for at_rates in rows.values())
    named = tuple(replace(row, name=name) for name, row in zip(rows, best, strict=True))
    comparison = Comparison(named, comparisons["lora"][0].steps, False, rates)
    comparison.plot(IMAGES / "from-data.png")
    first = rows["lora"][0].losses[0]  # of the original model: one start is not there
    halved = {
        name: [steps_to(first / 2, row.losses) for row in at_rates]
        for name, at_rates in rows.items()
    }
    head = f"| steps at a rate of | {' | '.join(map(str, rates))} |\n|---|{'---|' * len(rates)}\n"
    cells = (" | ".join([f"`{name}`", *steps]) for name, steps in halved.items())
    table = head + "".join(f"| {row} |\n" for row in cells)
    page = DOCS / "choosing.md"
    shown = (
        "On the [digits of the demo](examples/digits.md), at rank 8, each at the rate of four\n"
        "that gives the smallest final loss. The score is the accuracy on 150 validation scans.\n\n"
        f"![Losses on the way](images/from-data.png)\n\n```text\n{comparison}\n```\n\n"
        "The steps until the mean loss of an epoch is half of the loss of the original model:\n\n"
        f"{table}"
    )
    page.write_text(with_marked(page, "from-data", shown))


def steps_to(loss: float, losses: Any) -> str:
    """The steps until the mean loss of an epoch is as small as this one."""
    means = [sum(losses[end - 3 : end]) / 3 for end in range(3, len(losses) + 1)]
    return str(next((end for end, mean in enumerate(means, start=3) if mean <= loss), "never"))


def compared_on_digits(wrappers: list[str], **changes: Any) -> Any:
    """`compare` on the digits of the demo, as the demo does."""
    import jax

    from jno_lora_compare import compare
    from jno_lora_demos.digits import _candidates, _classifier, _run

    model, digits = pretrained()
    effort = _run.FULL
    batches = list(_classifier.batches_of(digits.training, epochs=effort.epochs, seed=0))
    settings = {"learning_rate": effort.rates, **changes}
    return compare(
        model,
        _classifier.loss,
        batches,
        wrappers,
        steps=len(batches),
        key=jax.random.key(0),
        rank=_candidates.RANK,
        alpha=_candidates.ALPHA,
        score=lambda model: _classifier.measure(model, digits).order,
        **settings,
    )


@functools.cache
def pretrained() -> tuple[Any, Any]:
    """The demo's model, trained on upright digits, and its data."""
    from rich.console import Console

    from jno_lora_demos.digits import _data, _run

    digits = _data.load(0)
    return _run.pretrained(Console(file=io.StringIO()), digits, _run.FULL, 0), digits


def with_marked(page: pathlib.Path, name: str, shown: str) -> str:
    """The page's text, with `shown` between its comments `name`."""
    text, number = re.subn(
        rf"(?<=<!-- {name} -->)(\n?).*?(?=<!-- /{name} -->)",
        lambda match: match[1] + shown,
        page.read_text(),
        flags=re.S,
    )
    assert number == 1, page
    return text


def shrink(picture: pathlib.Path) -> None:
    """Few colours are enough for lines and letters."""
    with Image.open(picture) as image:
        if image.mode == "P":  # it has few colours already
            return
        image.convert("RGB").quantize(128, dither=Image.Dither.NONE).save(picture, optimize=True)


def with_printed(text: str, printed: str) -> str:
    """`text`, with `printed` between its first comments `printed`, if it has them."""
    lines = "\n".join(line.rstrip() for line in printed.strip("\n").splitlines())
    return PRINTED.sub(lambda match: f"{match[1]}```text\n{lines}\n```\n{match[2]}", text, count=1)


if __name__ == "__main__":
    main(sys.argv[1:])
