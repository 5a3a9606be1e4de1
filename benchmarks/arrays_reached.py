"""The fraction of real models that `infer` and `declare_raw` reach, from shapes alone.

    .venv-models/bin/python -m benchmarks.arrays_reached [--write docs/evidence/flax-and-haiku.md]

It runs in the environment of `make test-models`. The sizes are the defaults of each package, except
for a Fourier neural operator, which has no defaults. No array is allocated.
"""

import argparse
import importlib.metadata
import math
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import flowjax.distributions
import flowjax.flows
import foundax
import jax
import jax.numpy as jnp
import jax.random as jr
import pdequinox

from jno.lora import SelectionError
from jno_lora_arrays import DeclaredArray, declare_raw, infer

from .arrays import write


class Case(NamedTuple):
    """A model: its constructor, its call, and the shapes of its inputs."""

    name: str
    make: Callable[[Any], Any]
    call: Callable[..., Any]
    inputs: tuple[tuple[int, ...], ...]


def _walrus(model: Any, plane: Any, space: Any) -> Any:
    # The encoder and the decoder depend on the number of dimensions.
    labels = jnp.arange(4)
    return [model(x, labels, [[2, 2]] * (x.ndim - 3)) for x in (plane, space)]


def _fno(key: Any) -> Any:
    return pdequinox.arch.ClassicFNO(
        2, 1, 1, hidden_channels=64, num_modes=16, num_blocks=4, activation=jax.nn.gelu, key=key
    )


def _flow(make: Callable[..., Any]) -> Callable[[Any], Any]:
    return lambda key: make(key, base_dist=flowjax.distributions.Normal(jnp.zeros(16)))


def _log_prob(flow: Any, x: Any) -> Any:
    return flow.log_prob(x)


def _call(model: Any, x: Any) -> Any:
    return model(x)


CASES = (
    Case(
        "foundax `walrus`",
        lambda key: foundax.walrus(key=key),
        _walrus,
        ((1, 2, 128, 128, 4), (1, 2, 64, 64, 64, 4)),
    ),
    Case("foundax `pit`", lambda key: foundax.pit(1, 1, key=key), _call, ((1, 4096, 1),)),
    Case("pdequinox `ClassicFNO`, 64 channels, 16 modes", _fno, _call, ((1, 64, 64),)),
    *(
        Case(f"flowjax `{make.__name__}`, 16 dimensions", _flow(make), _log_prob, ((5, 16),))
        for make in (
            flowjax.flows.masked_autoregressive_flow,
            flowjax.flows.block_neural_autoregressive_flow,
        )
    ),
)


def table() -> str:
    """A Markdown table: each model's size, the reached fraction, the largest array out of reach."""
    lines = [
        "| model | parameters | in layers | or by `infer` | or by `declare_raw` "
        "| largest array that `infer` misses |",
        "|---|--:|--:|--:|--:|---|",
    ]
    for case in CASES:
        model = eqx.filter_eval_shape(case.make, jr.key(0))
        inputs = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in case.inputs)
        axes = infer(case.call, model, *inputs)
        parameters = [row for row in axes if not (row.reason or "").endswith("not a parameter")]
        count = sum(math.prod(row.shape) for row in parameters)
        matrices = [row for row in parameters if len(row.shape) > 1]
        in_layers = [row for row in matrices if (row.reason or "").startswith("in a layer")]
        layers = sum(math.prod(row.shape) for row in in_layers)
        total = sum(math.prod(row.shape) for row in matrices)
        missed = [row for row in matrices if row.axes is None and row not in in_layers]
        largest = max(missed, key=lambda row: math.prod(row.shape), default=None)
        why = "" if largest is None else f"`{largest.path.split('/')[-1]}` {largest.shape}: "
        by_raw = (layers + _declared(case)) / total
        cells = [f"{count:,}", f"{layers / total:.1%}", f"{axes.coverage:.1%}", f"{by_raw:.1%}"]
        reason = "" if largest is None else why + (largest.reason or "")
        lines.append(f"| {case.name} | {' | '.join(cells)} | {reason} |")
        print(lines[-1], flush=True)
    return "\n".join(lines) + "\n"


def _declared(case: Case) -> int:
    """The entries of the arrays that `declare_raw` declares."""
    try:
        model = eqx.filter_eval_shape(lambda key: declare_raw(case.make(key)), jr.key(0))
    except SelectionError:  # the model has no functions of paramax
        return 0
    is_box = lambda x: isinstance(x, DeclaredArray)  # noqa: E731
    boxes = filter(is_box, jax.tree.leaves(model, is_leaf=is_box))
    return sum(math.prod(box.array.shape) for box in boxes)


def main() -> None:
    """Print the table, or write it into a page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", type=pathlib.Path, help="the page to write the table into")
    options = parser.parse_args()
    names = ("foundax", "pdequinox", "flowjax", "jax")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)
    text = f"With {versions}.\n\n{table()}"
    if options.write is not None:
        write(options.write, "reached", text)


if __name__ == "__main__":
    main()
