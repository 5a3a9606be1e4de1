"""The cost of a training step of a large model with each adapter, from shapes alone.

    python -m benchmarks.cost_model [--formulas]

Prints the tables of `docs/evidence/cost-model.md`: the costs of each base by formula, and their
ratios to XLA's costs of the blocks, compiled and never allocated. The second table takes minutes.
"""

import argparse
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax

from ._abstract import STACK, compiled_step
from ._adapter_costs import TERMS, Layer

BATCH = {"devices": 8, "sequences": 64, "length": 512}
# Not `moved`: the formula is a lower bound.
COMPARED = ("trained", "arguments", "flops", "gathered", "summed", "temporary")
NAMES = {
    "full": "full fine-tuning",
    "lora": "LoRA",
    "lora-fa": "LoRA-FA",
    "dora": "DoRA",
    "lora-xs": "LoRA-XS",
    "lokr": "LoKr",
    "oft": "OFT",
    "vera": "VeRA",
    "ia3": "IA³",
}


@dataclass(frozen=True)
class Base:
    """A Llama-like model: its width, inner width, width of keys and values, heads and blocks."""

    width: int
    inner: int
    keys: int
    heads: int
    blocks: int

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        """The arguments that make one block."""
        return self.width, self.inner, self.keys, self.heads

    def layers(self, devices: int, *, tensor: bool) -> Iterator[Layer]:
        """A block's linear layers in their order, with one device's outputs and inputs of each.

        FSDP cuts outputs. Tensor parallelism cuts outputs too, except for the layers that lead back
        to the width of the model, whose inputs it cuts.
        """
        width, inner, keys = self.width, self.inner, self.keys
        attention = (width, width), (keys, width), (keys, width)
        for out, inputs in (*attention, (inner, width), (inner, width)):
            yield Layer(out, inputs, out // devices, inputs)
        # The last layer is `down`.
        for inputs in (width, inner):
            on_device = (width, inputs // devices) if tensor else (width // devices, inputs)
            yield Layer(width, inputs, *on_device)


BASES = {
    "1B": Base(2048, 8192, 512, 32, 16),
    "7B": Base(4096, 11008, 4096, 32, 32),
    "13B": Base(5120, 13824, 5120, 40, 40),
    "70B": Base(8192, 28672, 1024, 64, 80),
}


class Cost(NamedTuple):
    """The cost of one block in a step, on one device; `trained` counts all devices."""

    trained: int  # parameters
    flops: float
    state: int  # bytes: weights, adapters, moments
    moved: int  # bytes of weights, and bytes that the optimiser reads and writes
    gathered: int  # numbers that come from other devices
    reduced: int  # numbers that are summed over the devices


def cost(
    base: Base, method: str, rank: int, *, devices: int, tensor: bool, sequences: int, length: int
) -> Cost:
    """The cost of a step by formula.

    **Arguments:**

    - `method`: a name of `TERMS`.
    - `devices`, `tensor`: FSDP cuts weights and batch over the devices; tensor parallelism cuts
        the weights and the activations between two layers.
    - `sequences`, `length`: the batch.
    """
    terms, is_full = TERMS[method], method == "full"
    tokens = sequences * length if tensor else sequences * length // devices
    # Every device has all norms.
    norms = 2 * base.width
    trained = trained_here = norms if is_full else 0
    state = 0 if is_full else 2 * norms
    flops, moved, gathered, reduced = 0.0, 0, 0, 0
    stored = list(base.layers(devices, tensor=tensor))
    for layer in stored:
        is_last, cuts_inputs = layer is stored[-1], layer.i < layer.inputs
        whole = layer._replace(o=layer.out, i=layer.inputs)
        here, everywhere = terms(layer, rank), terms(whole, rank)
        # FSDP multiplies by the gathered weight.
        at, t = (layer, here) if tensor else (whole, everywhere)
        trained += everywhere.trains
        trained_here += here.trains
        if not is_full:
            state += 2 * layer.weight + 4 * here.holds
        # Forward, recomputed, and for the gradient of the input. The last layer recomputes only
        # what a gradient needs.
        products = 2 if is_last and not t.needs_product else 3
        spared = t.unused if is_last else 0
        flops += 2 * tokens * (products * at.weight + 2 * t.forward + t.backward - spared)
        moved += 2 * products * at.weight
        if not tensor:
            gathered += 2 * whole.weight + t.gathers
        elif cuts_inputs:
            between = 1 + (t.needs_between or not is_last)
            reduced += tokens * ((products - 1) * layer.out + between * t.between)
        else:
            reduced += tokens * (layer.inputs + t.between)
    # Scores and weighted values: forward, recomputed, and twice backward.
    flops += 4 * 4 * tokens * length * base.width // (devices if tensor else 1)
    # In float32: the parameter and two moments. These and the gradient are read and written.
    state += 12 * trained_here
    moved += 32 * trained_here
    return Cost(trained, flops, state, moved, gathered, reduced if tensor else trained)


def agreement(base: Base, method: str, rank: int, **settings: Any) -> dict[str, float]:
    """XLA's figures of a compiled step over the formulas' figures, and its temporary bytes.

    **Arguments:** as for `cost`.
    """
    formula = cost(base, method, rank, **settings)
    adapter = None if method == "full" else method
    compiled = compiled_step(base.sizes, adapter, rank, **settings)
    # Beside the parameters: the optimiser's counter, the input, and the gradient of the output.
    here = 1 if settings["tensor"] else settings["devices"]
    batch = settings["sequences"] * settings["length"] * base.width // here
    ratios = {
        "trained": compiled.trained / (STACK * formula.trained),
        "arguments": compiled.arguments / (STACK * formula.state + 4 + 2 * 2 * batch),
        "flops": compiled.flops / formula.flops,
        "moved": compiled.accessed / formula.moved,
        "summed": compiled.reduced / formula.reduced,
        "temporary": compiled.temporary,
    }
    if formula.gathered:
        ratios["gathered"] = compiled.gathered / formula.gathered
    return ratios


def rank_of(method: str) -> int:
    """The rank of a method in the tables."""
    return 256 if method == "vera" else 16


def formulas(name: str) -> str:
    """The table of one base: all blocks, one step, one of the devices."""
    base = BASES[name]

    def both(method: str) -> list[Cost]:
        return [cost(base, method, rank_of(method), tensor=t, **BATCH) for t in (False, True)]

    def row(method: str) -> Iterator[str]:
        fsdp, tensor = costs = both(method)
        yield NAMES[method]
        yield f"{fsdp.trained * base.blocks / 1e6:,.2f}"
        for mine, everything in zip(costs, both("full"), strict=True):
            yield f"{mine.flops / everything.flops:.3f}"
        for size in (*(c.state for c in costs), *(c.moved for c in costs), 2 * fsdp.gathered):
            yield f"{size * base.blocks / 1e9:.2f}"
        # Gradients are float32, activations bfloat16.
        yield f"{4 * fsdp.reduced * base.blocks / 1e9:.3f}"
        yield f"{2 * tensor.reduced * base.blocks / 1e9:.1f}"

    heading = [
        name,
        "trains",
        *("flops, F", "flops, T", "state, F", "state, T", "moved, F", "moved, T"),
        *("gathered, F", "summed, F", "summed, T"),
    ]
    return markdown(heading, map(row, NAMES))


def comparison() -> str:
    """The table of ratios to XLA's costs, for the blocks of all bases."""
    rows = []
    everything: dict[Any, float] = {}
    for method, label in NAMES.items():
        cells = [label]
        for tensor in (False, True):
            measured = []
            for name, base in BASES.items():
                print(f"compiling {label}, {name}", file=sys.stderr)
                ratios = agreement(base, method, rank_of(method), tensor=tensor, **BATCH)
                full = everything.setdefault((name, tensor), ratios["temporary"])
                measured.append(ratios | {"temporary": ratios["temporary"] / full})
            names = [name for name in COMPARED if name in measured[0]]
            cells += [spread([ratios[name] for ratios in measured]) for name in names]
        rows.append(cells)
    heading = [
        "",
        *(f"{n}, F" for n in COMPARED),
        *(f"{n}, T" for n in COMPARED if n != "gathered"),
    ]
    return markdown(heading, rows)


def spread(values: list[float]) -> str:
    """The smallest and the largest value, or one number if they agree."""
    low, high = (f"{f(values):.4f}".rstrip("0").rstrip(".") for f in (min, max))
    return low if low == high else f"{low} to {high}"


def markdown(heading: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table."""
    heading = list(heading)
    lines = [heading, ["---"] * len(heading), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--formulas", action="store_true", help="compile nothing")
    options = parser.parse_args()
    print("\n\n".join(map(formulas, BASES)))
    if not options.formulas:
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", BATCH["devices"])
        print(f"\n{comparison()}")


if __name__ == "__main__":
    main()
