"""The lists that follow from the zoo's methods, for tools that do not run code.

    python plugins/jno-lora-zoo/tests/listings.py            # which files are out of date
    python plugins/jno-lora-zoo/tests/listings.py --write    # writes them

The files are the stubs of adapters for type checkers, the tables
in docs/zoo.md and docs/choosing.md, and the pages of methods in mkdocs.yml. A method is one line in
`jno_lora_zoo/methods/__init__.py`; everything else is read from its class.
"""

import dataclasses
import inspect
import pathlib
import re
import runpy
import sys
import types
import typing
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from jno.lora import Shared, resolve
from jno.lora._contract import zero_statistics
from jno_lora_zoo import FAMILIES, METHODS, LinearLayer, Update

ROOT = pathlib.Path(__file__).parents[3]
COLUMNS = ("zoo", "foundax", "arrays")
STUBS = runpy.run_path(str(ROOT / "plugins/jno-lora-zoo/stubs.py"))


def files() -> dict[pathlib.Path, str]:
    """Each file that is written, wholly or in part, with the text that it should have."""
    found = {path: text for column in COLUMNS for path, text in stubs_of(column).items()}
    zoo = ROOT / "docs/zoo.md"
    found[zoo] = _replaced(zoo, r"(?<=<!-- methods -->\n).*?(?=<!-- /methods -->)", _table(), re.S)
    choosing = ROOT / "docs/choosing.md"
    found[choosing] = _replaced(
        choosing, r"(?<=<!-- families -->\n).*?(?=<!-- /families -->)", _families(), re.S
    )
    nav = ROOT / "mkdocs.yml"
    pages = "".join(f"          - methods/{method.variant}.md\n" for method in METHODS)
    found[nav] = _replaced(nav, r"^( +- methods/.*\n)+", pages, re.M)
    return found


def outdated() -> list[pathlib.Path]:
    """The files that have another text."""
    return [path for path, text in files().items() if not path.exists() or path.read_text() != text]


def stubs_of(column: str) -> dict[pathlib.Path, str]:
    """The stubs of a plugin, which also every build and every editable install of it writes."""
    return STUBS["stubs_of"](ROOT / f"plugins/jno-lora-{column}")


def _replaced(path: pathlib.Path, pattern: str, text: str, flags: int) -> str:
    new, count = re.subn(pattern, lambda _: text, path.read_text(), flags=flags)
    assert count == 1, f"{path} should have one place for what is written, but has {count}"
    return new


def _table() -> str:
    """A row for each method: its variant, arrays, law, parameters and paper."""
    head = "| variant | arrays | law | parameters | paper |\n|---|---|---|---|---|\n"
    return head + "".join(map(_row, METHODS))


def _families() -> str:
    """A row for each method, by family: its variant, its parameters, and its way in a step."""
    head = "| family | variant | parameters | in a step |\n|---|---|---|---|\n"
    rows: list[str] = []
    for family in FAMILIES:
        named = sorted((m.variant, m) for m in METHODS if m.about.family == family)
        for number, (variant, method) in enumerate(named):
            cells = ["" if number else family, f"[`{variant}`](methods/{variant}.md)"]
            rows.append(f"| {' | '.join([*cells, method.about.formula, _way(method)])} |\n")
    return head + "".join(rows)


def _way(method: Any) -> str:
    """How `forward` computes the law on a linear layer, at a small or at a larger rank."""
    cls: Any = types.new_class(f"Watched{method.__name__}", (method, _Watched))
    layer = eqx.nn.Linear(256, 192, key=jax.random.key(0))
    ways: set[str] = set()
    for rank in (2, 32):
        try:
            data = {"statistics": zero_statistics(cls, layer)} if cls.needs else {}
            key = jax.random.key(0)
            resolve(cls(layer, rank, 1.0, key=key, **data), key=key).forward(jnp.ones(256))
        except _WayError as seen:
            ways.add(str(seen))
    return min(ways)  # "features" before "its weight"


class _WayError(Exception):
    """Stops a trace at an operation; the message says on what the operation works."""


class _Watched(LinearLayer):
    """A linear layer whose operations say by what a method computes its law."""

    def low_rank(self, *_: Any, **__: Any) -> Any:
        raise _WayError("features")

    def product(self, *_: Any, **__: Any) -> Any:
        raise _WayError("features")

    def on_output(self, *_: Any, **__: Any) -> Any:
        raise _WayError("outputs")

    def plus(self, x: Any, U: Update) -> Any:
        raise _WayError("its weight" if U.times is None else "features")


def _row(method: Any) -> str:
    law = re.search(r"Law: (`[^`]+`(?: with `[^`]+`)?)", " ".join(inspect.getdoc(method).split()))
    assert law is not None, f"the docstring of {method.__name__} says no `Law: ...`"
    # No constructor makes `direction_weights`: they are of conditional adapters.
    fields = [f for f in dataclasses.fields(method) if f.name != "direction_weights"]
    arrays = [_array(f, f.name in method.adapter_fields) for f in fields]
    is_on_arxiv = method.about.paper[:4].isdigit()
    site = "https://arxiv.org/abs/" if is_on_arxiv else "https://openreview.net/forum?id="
    paper = f"[{method.about.paper}]({site}{method.about.paper})"
    variant = f"[`{method.variant}`](methods/{method.variant}.md)"
    cells = [variant, ", ".join(filter(None, arrays)), law[1], method.about.formula, paper]
    return f"| {' | '.join(cells)} |\n"


def _array(field: Any, trains: bool) -> str:
    # Fields that an option leaves out have a type such as `Float[Array, "r in"] | None`.
    types = typing.get_args(field.type) or (field.type,)
    shape = next((t.dim_str for t in types if hasattr(t, "dim_str")), "")
    shape = "shared" if field.type is Shared else shape
    if not shape:  # the base, a static field, a scalar
        return ""
    name = f"**{field.name}**" if trains else field.name
    return f"{name} ({', '.join(shape.split())})"


def main(arguments: list[str]) -> int:
    """Show which files are out of date, and with `--write` write them. Returns the exit status."""
    texts = files()
    paths = outdated()
    for path in paths:
        print(path.relative_to(ROOT))
        if "--write" in arguments:
            path.write_text(texts[path])
    return 1 if paths and "--write" not in arguments else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
