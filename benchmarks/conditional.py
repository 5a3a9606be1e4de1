"""A value of the parameter for each example of a batch, beside one value and beside copies.

    python -m benchmarks.conditional [--quick]

Each model is called in three forms: the plain adapter at one value of the parameter; a conditional
with a value per example; and the same where each example gets a copy of the fields that move, as
adapters without `with_directions` do. Time is the processor's, of all threads; rounds of the first
two are interleaved, in both orders. Copies come afterwards: in between, they would leave cold
caches to the next program. The tables show medians and quartiles. Memory is the compiler's
temporary memory. The goal is at most 1.15 times the time and 1.1 times the memory of one value.
"""

import argparse
import itertools
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from foundax.architectures.fno import FNO1D

from jno.lora import Net, lora_trainable_filter
from jno_lora_conditional import Conditional, Powers, at
from jno_lora_zoo import with_attributes

FORMS = ("one value", "per example", "copies")
MOST_TIME, MOST_MEMORY = 1.15, 1.1


class Case(NamedTuple):
    """A model with adapters, a batch for it, and a name for tables."""

    name: str
    net: Net
    inputs: Any
    degree: int = 1


def cases(quick: bool) -> Iterator[Case]:
    """The models, largest layers first."""
    width, batch, channels, grid, points = (32, 8, 8, 8, 16) if quick else (1024, 256, 64, 32, 256)
    keys = iter(jax.random.split(jax.random.key(0), 8))
    mlp = eqx.nn.MLP(width, width, width, 3, jnp.tanh, key=next(keys))
    x = jax.random.normal(next(keys), (batch, width))
    rank = min(16, width // 4)
    for wrapper in ("lora", "adalora", "dora"):
        yield Case(f"MLP, {wrapper}", Net(mlp).freeze().lora(rank, wrapper=wrapper), x)
    yield Case("MLP, lora, degree 2", Net(mlp).freeze().lora(rank), x, degree=2)

    layers = [eqx.nn.Conv2d(channels, channels, 3, padding=1, key=next(keys)) for _ in range(3)]
    conv = eqx.nn.Sequential([f for layer in layers for f in (layer, eqx.nn.Lambda(jnp.tanh))])
    image = jax.random.normal(next(keys), (batch // 16 + 1, channels, grid, grid))
    yield Case("convolutions, lora", Net(conv).freeze().lora(4), image)

    fno: Any = FNO1D(1, channels, points // 16, n_layers=3, key=next(keys))
    signal = jax.random.normal(next(keys), (batch // 16 + 1, points, 1))
    for wrapper in ("CPSpectral", "LoRASpectral"):
        net = Net(fno).freeze().lora(4, wrapper=[wrapper, "LoRAConv"])
        yield Case(f"FNO, {wrapper}", net, signal)


def trained(net: Net, degree: int) -> Conditional:
    """A conditional adapter whose directions are random."""
    conditional = Conditional(net, Powers(source=0.0, degree=degree))
    leaves, structure = jax.tree.flatten(conditional.directions)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    noise = [0.1 * jax.random.normal(k, leaf.shape) for k, leaf in zip(keys, leaves, strict=True)]
    directions = jax.tree.unflatten(structure, noise)
    return eqx.tree_at(lambda c: c.directions, conditional, directions)


def programs(case: Case, derivative: bool) -> dict[str, Any]:
    """By form, the compiled program and its arguments."""
    conditional = trained(case.net, case.degree)
    copying = with_attributes(
        conditional, {"from_zero": tuple((path, ()) for path in conditional.directions)}
    )
    zs = jnp.linspace(0.0, 1.0, len(case.inputs))

    plain = at(conditional, 0.5)

    def each(c: Conditional, x: Any) -> Any:
        return jax.vmap(lambda z, x: at(c, z)(x))(zs, x)

    def program(call: Callable[..., Any], tree: Any, mask: Any) -> Any:
        trainable, frozen = eqx.partition(tree, mask)

        def outputs(trainable: Any, frozen: Any, x: Any) -> Any:
            return call(eqx.combine(trainable, frozen), x)

        def gradient(trainable: Any, frozen: Any, x: Any) -> Any:
            return jax.grad(lambda t: jnp.mean(outputs(t, frozen, x) ** 2))(trainable)

        function: Any = eqx.filter_jit(gradient if derivative else outputs)
        arguments = trainable, frozen, case.inputs
        compiled = function.lower(*arguments).compile()
        return compiled, arguments, compiled.compiled.memory_analysis().temp_size_in_bytes

    sides = (
        (lambda model, x: jax.vmap(model)(x), plain, lora_trainable_filter(plain)),
        (each, conditional, conditional.trainable),
        (each, copying, copying.trainable),
    )
    return {form: program(*side) for form, side in zip(FORMS, sides, strict=True)}


def measured(case: Case, rounds: int, derivative: bool) -> str:
    """A row of the table."""
    compiled = programs(case, derivative)
    seconds: dict[str, list[float]] = {form: [] for form in compiled}
    *interleaved, copies = FORMS
    turns = [interleaved[:: 1 if turn % 2 else -1] for turn in range(rounds + 1)]
    for form in [*itertools.chain(*turns), *[copies] * (rounds + 1)]:
        program, arguments, _ = compiled[form]
        start = time.process_time()
        jax.block_until_ready(program(*arguments))
        seconds[form].append(time.process_time() - start)
    # The first call of a program is slower.
    cells = [case.name, "gradient" if derivative else "output"]
    for form, (_, _, size) in compiled.items():
        low, middle, high = np.quantile(seconds[form][1:], (0.25, 0.5, 0.75)) * 1e3
        cells.append(f"{middle:.1f} [{low:.1f}, {high:.1f}]; {size / 2**20:.2f}")
    times = [float(np.median(seconds[form][1:])) for form in FORMS]
    sizes = [max(size, 1) for _, _, size in compiled.values()]
    ratio, memory = times[1] / times[0], sizes[1] / sizes[0]
    missed = [
        name for name, far in (("time", ratio > MOST_TIME), ("memory", memory > MOST_MEMORY)) if far
    ]
    cells += [f"{ratio:.2f}; {memory:.2f}", f"{times[2] / times[0]:.2f}; {sizes[2] / sizes[0]:.1f}"]
    return f"| {' | '.join([*cells, ', '.join(missed) or 'met'])} |"


def main() -> None:
    """Measure everything and print it."""
    parser = argparse.ArgumentParser(description="A value of the parameter for each example.")
    parser.add_argument("--quick", action="store_true", help="small shapes, to check that it runs")
    quick = parser.parse_args().quick
    forms = " | ".join(f"{form}: ms; MiB" for form in FORMS)
    print(f"| | computes | {forms} | per example / one | copies / one | goal |")
    print("|---|---|---|---|---|---|---|---|")
    for case in cases(quick):
        for derivative in (False, True):
            print(measured(case, 2 if quick else 15, derivative), flush=True)


if __name__ == "__main__":
    main()
