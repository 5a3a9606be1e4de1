"""A Fourier neural operator is adapted to another viscosity."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
from rich.console import Console

import jno_lora_foundax  # noqa: F401  # the adapters of spectral weights
from jno.lora import Net
from jno.lora.extending import Bar, default_registry, table
from jno_lora_compare._fitting import parameter_count

from . import burgers
from ._output import new_console, say, suggest_commands

NOTHING, EVERYTHING = "no adaptation", "full fine-tuning"
# Each method where it has an adapter, and LoRA for the spectral weights.
ADAPTERS = {name: [name, "lora"] for name in ("lora", "pissa", "lokr")}
_LAYERS = "spectral_layers|proj1"
_RANK, _ALPHA = 4, 8.0


class Effort(NamedTuple):
    """Sizes of the data, and the candidates that are trained on them."""

    source_simulations: int
    test_simulations: int
    pretraining_steps: int
    counts: tuple[int, ...]  # numbers of simulations to adapt to
    candidates: tuple[str, ...]
    protocol: burgers.Protocol


_LONG = burgers.Protocol((3e-4, 3e-3), steps=200, patience=6)
_SHORT = burgers.Protocol((3e-4,), steps=2, every=2)
_FULL = Effort(512, 64, 600, (8, 32), (EVERYTHING, *ADAPTERS), _LONG)
_QUICK = Effort(16, 16, 2, (2, 4), (EVERYTHING, "lora"), _SHORT)


class Row(NamedTuple):
    """A candidate: its error after each count, the last adapted net, and the error `kept`."""

    name: str
    errors: list[float]
    net: Net
    kept: float  # the error at the viscosity of the pretraining


def run_operator(output: Path, *, seed: int = 0, quick: bool = False) -> None:
    """Pretrain an operator, adapt it to few simulations in several ways, and report."""
    default_registry().defaults()  # raises before pretraining if the zoo is missing
    effort = _QUICK if quick else _FULL
    counts, steps, protocol = effort.counts, effort.pretraining_steps, effort.protocol
    console = new_console()
    keys = jax.random.split(jax.random.key(seed), 5)
    source = burgers.simulate(keys[0], effort.source_simulations, burgers.SOURCE)
    target = burgers.simulate(keys[1], max(counts), burgers.TARGET)
    test = burgers.simulate(keys[2], effort.test_simulations, burgers.TARGET)
    # A separate key, so that the other draws do not change.
    earlier_key = jax.random.fold_in(keys[2], 1)
    earlier = burgers.simulate(earlier_key, effort.test_simulations, burgers.SOURCE)
    _print_data(console, effort)
    with Bar(steps, "Pretraining", console=console) as bar:
        model = burgers.operator(keys[3])
        model = burgers.pretrain(model, source, steps, batch=16, on_step=bar.advance)
    error, kept = protocol.error(model, test), protocol.error(model, earlier)
    parameters = parameter_count(Net(model).partition()[0])
    say(
        console,
        f"Pretrained {parameters:,} parameters: relative error {kept:.3f} "
        f"at viscosity {burgers.SOURCE:g}, {error:.3f} at {burgers.TARGET:g}.",
        "",
    )
    untouched = Net(model).freeze()
    rows = [Row(NOTHING, [error] * len(counts), untouched, kept)]
    rows += _adapted(console, effort, model, target, (test, earlier), keys[4])
    _print_table(console, rows, parameters, effort)
    plot = output / "operator.png"
    models = {row.name: row.net.module for row in rows if row.name in (NOTHING, EVERYTHING, "lora")}
    burgers.draw(plot, {row.name: row.errors for row in rows}, counts, models, test)
    say(console, f"Plot: {plot}")
    suggest_commands(console, "jno-lora demo --task family", "one adapter for all viscosities")


def _adapted(
    console: Console, effort: Effort, model: Any, target: Any, tests: Any, key: jax.Array
) -> list[Row]:
    """Each candidate, adapted to each number of the simulations `target`, and tested."""
    rows: list[Row] = []
    test, earlier = tests
    counts, protocol = effort.counts, effort.protocol
    with Bar(len(effort.candidates) * len(counts) * len(protocol.rates), console=console) as bar:
        for name in effort.candidates:
            bar.update(what=name)
            nets = [Net(model, key=key) for _ in counts]
            for net, count in zip(nets, counts, strict=True):
                if name in ADAPTERS:
                    net.freeze().lora(_RANK, alpha=_ALPHA, target=_LAYERS, wrapper=ADAPTERS[name])
                protocol.adapt(net, [fields[:count] for fields in target], bar.advance)
            errors = [protocol.error(net.module, test) for net in nets]
            rows.append(Row(name, errors, nets[-1], protocol.error(nets[-1].module, earlier)))
    return rows


def _print_data(console: Console, effort: Effort) -> None:
    say(
        console,
        f"Burgers equation: {effort.source_simulations} simulations at viscosity "
        f"{burgers.SOURCE:g} to pretrain a Fourier neural operator on,",
        f"  {' or '.join(map(str, effort.counts))} at viscosity {burgers.TARGET:g} to adapt it; a "
        "quarter of these decides when to stop, and the rate.",
        f"Tested on {effort.test_simulations} other simulations at each viscosity.",
        "",
    )


def _print_table(console: Console, rows: Sequence[Row], parameters: int, effort: Effort) -> None:
    headings = ["trainable\nparameters", "% of\nmodel"]
    headings += [f"error from\n{count}" for count in effort.counts]
    headings.append(f"then at\n{burgers.SOURCE:g}")
    columns = [("adapter", "left"), *((heading, "right") for heading in headings)]
    cells: list[tuple[str, ...]] = []
    for name, errors, net, kept in rows:
        trainable = parameter_count(net.partition()[0])
        percent = f"{100 * trainable / parameters:.1f}"
        cells.append((name, f"{trainable:,}", percent, *(f"{e:.3f}" for e in (*errors, kept))))
    caption = (
        f"{effort.test_simulations} test fields. Adapters: rank {_RANK}, alpha {_ALPHA:g}.\n"
        f"Last column: what {effort.counts[-1]} simulations leave of the pretraining's viscosity.\n"
        f"Rate: the best of {', '.join(f'{rate:g}' for rate in effort.protocol.rates)} on the "
        "validation split. A method that\nfinds nothing better there keeps the model as it was."
    )
    console.print(table("Relative error by the number of simulations", columns, cells, caption))
    console.print()
