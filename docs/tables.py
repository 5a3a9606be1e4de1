"""Tables and lists that follow from the methods of the zoo and the types of PEFT."""

import dataclasses
import inspect
import re
import types
import typing
from collections.abc import Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from jno.lora import Shared, resolve
from jno.lora._contract.statistics import zero_statistics
from jno_lora_peft.config import REASONS
from jno_lora_peft.types import TYPES
from jno_lora_zoo import FAMILIES, METHODS, LinearLayer, Update

SITES = {"arXiv": "https://arxiv.org/abs/", "OpenReview": "https://openreview.net/forum?id="}
_WRITTEN = {
    "BEFT": "if unchanged since loading",
    "TRAINABLE_TOKENS": "if unchanged since loading",
    "LN_TUNING": "if unchanged since loading",
}


def methods() -> str:
    """A row for each method: its variant, arrays, law, parameters and paper."""
    head = "| variant | arrays | law | parameters | paper |\n|---|---|---|---|---|\n"
    return head + "".join(map(_row, METHODS))


def families() -> str:
    """A row for each method, by family: its variant, its parameters, and its way in a step."""
    head = "| family | variant | parameters | in a step |\n|---|---|---|---|\n"
    rows: list[str] = []
    for family in FAMILIES:
        named = sorted((m.variant, m) for m in METHODS if m.about.family == family)
        for number, (variant, method) in enumerate(named):
            cells = ["" if number else family, f"[`{variant}`](methods/{variant}.md)"]
            rows.append(f"| {' | '.join([*cells, method.about.formula, way_of(method)])} |\n")
    return head + "".join(rows)


def pages() -> str:
    """The pages of the methods, as the site's navigation has them."""
    return "".join(f"          - methods/{method.variant}.md\n" for method in METHODS)


def types_of_peft() -> str:
    """A row for each type: whether it is read and written, and how it is held, or why not."""
    rows = ["| type | read | written | here, or why not |", "|---|---|---|---|"]
    for name, kind in sorted(TYPES.items()):
        written = _WRITTEN.get(name, "yes" if kind.variants else "as LoRA")
        held = " ".join(str(type(kind).__doc__).split()).removesuffix(".")
        rows.append(f"| `{name}` | yes | {written} | {held} |")
    rows += [f"| `{name}` | no | no | {reason} |" for name, reason in sorted(REASONS.items())]
    return "\n".join(rows) + "\n"


def way_of(method: Any) -> str:
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
    shapes = dict(arrays_of(method))
    arrays = [f"**{n}** {shapes.pop(n, '(a number)')}" for n in method.adapter_fields]
    arrays += [f"{n} {shape}" for n, shape in shapes.items()]
    site = SITES["arXiv" if method.about.paper[:4].isdigit() else "OpenReview"]
    paper = f"[{method.about.paper}]({site}{method.about.paper})"
    variant = f"[`{method.variant}`](methods/{method.variant}.md)"
    cells = [variant, ", ".join(arrays), law[1], method.about.formula, paper]
    return f"| {' | '.join(cells)} |\n"


def arrays_of(method: Any) -> Iterator[tuple[str, str]]:
    """The fields of a method that are arrays, with their shapes in brackets."""
    for field in dataclasses.fields(method):
        # Fields that an option leaves out have a type such as `Float[Array, "r in"] | None`.
        kinds = typing.get_args(field.type) or (field.type,)
        shape = next((kind.dim_str for kind in kinds if hasattr(kind, "dim_str")), "")
        shape = "shared" if field.type is Shared else shape
        # The base, a static field and a scalar have no shape. No constructor makes
        # `direction_weights`: they are of conditional adapters.
        if shape and field.name != "direction_weights":
            yield field.name, f"({', '.join(shape.split())})"
