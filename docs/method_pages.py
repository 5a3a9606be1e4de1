"""The pages of the methods: what follows from a class, above the sections that are written by hand.

A page begins with its title and the part between the comments `class`, from the docstring of the
class, its `about`, its fields and its options. `When to use it` and `How it departs from the paper`
follow, of ten lines at most.
"""

import contextlib
import inspect
import io
import json
import pathlib
import re
import textwrap

import jax

from jno_lora_zoo import METHODS, Method, adapters

from . import tables

ROOT = pathlib.Path(__file__).parents[1]
END = "<!-- /class -->\n"
RANK, RANK_AND_ALPHA = "rank=8", "rank=8, alpha=8"
# The arguments that a page shows, where they are not these: what a method wants, or an option.
ARGUMENTS = {
    **dict.fromkeys(("ia3", "ia3-in", "ia3-out"), ""),
    "c3a": "rank=32",
    "delora": "rank=8, alpha=15",
    "fourierft": 'rank=8, alpha=300, options={"n_frequency": 1000}',
    "loha": "rank=4, alpha=4",
    "lora-xs": 'rank=8, alpha=8, options={"svd": "exact"}',
    "milora": 'rank=8, alpha=8, options={"svd": "gram"}',
    "pissa": 'rank=8, alpha=8, options={"svd": "randomized"}',
    "psoft": 'rank=8, options={"svd": "exact"}',
    "randlora": "rank=32, alpha=640",
    "rslora": "rank=32, alpha=16",
    "supertuning": 'rank=8, options={"sparsity": 0.99}',
    "tinylora": 'rank=2, options={"u": 13}',
    "vb-lora": 'rank=4, options={"vectors": 64, "vector_length": 32}',
    "vera": "rank=256, alpha=256",
    "vera-shared": "rank=256",
    "waveft": 'rank=8, alpha=25, options={"n_frequency": 1000}',
}
MODEL = """\
import equinox as eqx
import jax
from jno.lora import Net

model = eqx.nn.MLP(in_size=64, out_size=64, width_size=64, depth=1, key=jax.random.key(0))
net = Net(model)
net.freeze().lora({arguments})
print(net.summary())
"""
MODEL_AND_DATA = """\
import equinox as eqx
import jax
import jax.numpy as jnp
from jno.lora import Net
from jno_lora_zoo import collect_statistics

model = eqx.nn.MLP(in_size=64, out_size=64, width_size=64, depth=1, key=jax.random.key(0))
batches = jax.random.normal(jax.random.key(1), (4, 32, 64))


def loss(model, x):
    return jnp.mean((jax.vmap(model)(x) - x) ** 2)


net = Net(model)
statistics = collect_statistics(model, batches, loss, wrapper="{variant}")
net.freeze().lora({arguments}, statistics=statistics)
print(net.summary())
"""
# Options of many methods, whose docstrings need not repeat them.
OPTIONS = {
    "adapter_dtype": "[a smaller dtype](../training.md#precision) of the arrays that train",
    "bias": '`"train"` trains an update of the bias',
    "dropout": "a probability, of the inputs of `B A` in training",
    "multiplier": "[a factor that can change](../training.md#other-values-one-compilation)",
}
# What `forward` works on, if `about.cost` does not say more.
WAYS = {
    "features": "works on features, without forming `W'`",
    "outputs": "works on the outputs, without forming `W'`",
}
# The sides over which the time of a step is given.
SIDES = {
    "floor": "training the biases alone",
    "full": "full fine-tuning",
    "jno": "jNO",
    "peft": "PEFT",
}


def pages() -> dict[pathlib.Path, str]:
    """The text of each page."""
    return {(path := page_of(method)): with_class(path, method) for method in METHODS}


def page_of(method: type[Method]) -> pathlib.Path:
    """Where the page is."""
    return ROOT / f"docs/methods/{method.variant}.md"


def with_class(path: pathlib.Path, method: type[Method]) -> str:
    """The page, with what follows from its class; a page that is not there yet gets a heading."""
    text = path.read_text() if path.exists() else f"{END}\n## When to use it\n"
    title, _, summary = str(inspect.getdoc(method)).partition("\n")[0].partition(": ")
    law, *notes = paragraphs(method)
    code = code_of(method)
    parts = [
        f"# {title}\n\n<!-- class -->\n{wrapped(summary[0].upper() + summary[1:])}",
        wrapped(named(method)),
        wrapped(law.replace("Law:", "**Law:**")),
        f"```python\n{code}```",
        f"```text\n{printed(code, run=bool(method.needs))}```",
        table(("", ""), facts(method)),
        table(("option", "default", ""), options(method)),
        *map(wrapped, notes),
    ]
    return "\n\n".join(parts) + "\n" + END + text.partition(END)[2]


def wrapped(text: str) -> str:
    """Lines of 120 columns at most, which do not break code."""
    whole = re.sub(r"`[^`]+`", lambda match: match[0].replace(" ", "\0"), text)
    lines = textwrap.fill(whole, 120, break_long_words=False, break_on_hyphens=False)
    return lines.replace("\0", " ")


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A table in Markdown."""
    lines = [f"| {' | '.join(row)} |" for row in [head, *rows]]
    return "\n".join([lines[0], "|---" * len(head) + "|", *lines[1:]])


def documented(method: type[Method]) -> list[str]:
    """The paragraphs of the docstring after the first, each in one line; bullets are alone."""
    doc = re.sub(r"\n(?=- `)", "\n\n", str(inspect.getdoc(method)))
    return [" ".join(paragraph.split()) for paragraph in doc.split("\n\n")[1:]]


def named(method: type[Method]) -> str:
    """How to ask for it, its papers and its classes."""
    (papers,) = (text for text in documented(method) if re.match("Papers?: ", text))
    found = re.findall(r'([^;:"]*)"([^"]+)", (arXiv|OpenReview):(\w[\w.]*\w)', papers)
    assert method.about.paper in {number for *_, number in found}, papers
    site = {"arXiv": "https://arxiv.org/abs/", "OpenReview": "https://openreview.net/forum?id="}
    cited = "; ".join(
        f"{authors.strip()} *{title}*, [{number}]({site[at]}{number})".strip()
        for authors, title, at, number in found
    )
    classes = [
        f"`{name}`" for name in adapters.__all__ if getattr(adapters, name).__bases__[0] is method
    ]
    return (
        f'`wrapper="{method.variant}"`, of the family *{method.about.family}*: {cited}. By '
        f"[kind of layer](../zoo.md#kinds-of-layer): {', '.join(classes)}."
    )


def paragraphs(method: type[Method]) -> list[str]:
    """The law, and what else the docstring says; not the paper, and not the options."""
    return [text for text in documented(method) if not re.match(r"Papers?: |- `", text)]


def code_of(method: type[Method]) -> str:
    """The code of the page."""
    default = RANK_AND_ALPHA if method.has_alpha else RANK
    before, comma, options = ARGUMENTS.get(method.variant, default).partition(", options")
    asked = [before, f'wrapper="{method.variant}"'] if before else [f'wrapper="{method.variant}"']
    arguments = f"{', '.join(asked)}{comma}{options}"
    code = MODEL_AND_DATA if method.needs else MODEL
    return code.format(arguments=arguments, variant=method.variant)


def printed(code: str, run: bool) -> str:
    """What the code prints: shapes alone, for which nothing need be computed without data."""

    def execute() -> None:
        exec(compile(code, "page", "exec"), {"__name__": "page"})

    with contextlib.redirect_stdout(io.StringIO()) as out:
        execute() if run else jax.eval_shape(execute)
    lines = (line.rstrip() for line in out.getvalue().splitlines())
    return "".join(f"{line}\n" for line in lines)


def facts(method: type[Method]) -> list[tuple[str, ...]]:
    """What trains, how many numbers, and what a call costs."""
    shapes = dict(tables.arrays_of(method))
    train = {name: shapes.pop(name, "(a number)") for name in method.adapter_fields}
    optional = {name: shapes.pop(name) for name in method.optional_fields}
    limits = ", ".join(reversed(method._rank_limits))
    is_clamped = limits and "effective_rank" not in vars(method)
    needs = [need if isinstance(need, str) else need.name for need in method.needs]
    data = f"{', '.join(f'`{n}`' for n in needs)} of the [data](../calibration.md)"
    rows = {
        "trains": listed(train) + (f", with an option {listed(optional)}" if optional else ""),
        "frozen": listed(shapes),
        "parameters": f"`{method.about.formula}`",
        "`r`": f"`min(rank, {limits})`" if is_clamped else "",
        "starts from": data if needs else "",
        "a call": (method.about.cost or WAYS[tables.way_of(method)]).removesuffix("."),
        "a training step": step_of(method),
    }
    return [row for row in rows.items() if row[1]]


def listed(shapes: dict[str, str]) -> str:
    """Names, each with a remark."""
    return ", ".join(f"`{name}` {remark}" for name, remark in shapes.items())


def step_of(method: type[Method]) -> str:
    """The measured times of a training step, over those of others."""
    cases = json.loads((ROOT / "benchmarks/results/cpu.json").read_text())["cases"]
    name = re.compile(rf"mlp/{method.__name__}/.*|later/{method.__name__}")
    of_method = (
        case["ratios"].get("step", {})
        for case in cases
        if case["group"] in ("linear", "later") and name.fullmatch(case["name"])
    )
    ratios = next(of_method, {})
    shown = [f"{ratios[s]['median']:.2g} times {SIDES[s]}" for s in SIDES if s in ratios]
    where = "(`Linear(1024, 1024)` on a CPU: [benchmarks](../evidence/benchmarks.md))"
    return f"{', '.join(shown)} {where}" if shown else ""


def options(method: type[Method]) -> list[tuple[str, ...]]:
    """The options of the constructor, with their defaults and what the docstring says of them."""
    bullets = (re.fullmatch(r"- `(\w+)`: (.*?)\.?", text) for text in documented(method))
    said = OPTIONS | {match[1]: match[2] for match in bullets if match}
    return [
        (f"`{p.name}`", f"`{p.default!r}`".replace("'", '"'), said[p.name])
        for p in inspect.signature(method.__init__).parameters.values()
        if p.kind is p.KEYWORD_ONLY and p.name not in ("key", "statistics")
    ]
