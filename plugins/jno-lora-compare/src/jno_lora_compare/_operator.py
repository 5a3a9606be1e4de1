"""The demo of an operator: a Fourier neural operator moves to another viscosity."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
from rich.console import Console

from jno.lora import Net
from jno.lora.extending import Bar, default_registry, table

from . import burgers
from ._fitting import number_of
from ._output import new_console, say, say_what_next

NOTHING, EVERYTHING = "no adaptation", "full fine-tuning"
# Each method where it has an adapter, and LoRA for the spectral weights.
ADAPTERS = {name: [name, "lora"] for name in ("lora", "pissa", "lokr")}
_LAYERS = "spectral_layers|proj1"
_RANK, _ALPHA = 4, 8.0


class Effort(NamedTuple):
    """How much data there is, and how long is trained."""

    many: int
    tested: int
    pretraining: int
    counts: tuple[int, ...]
    candidates: tuple[str, ...]
    protocol: burgers.Protocol


class Row(NamedTuple):
    """A candidate: how many parameters train, and the error after each number of simulations."""

    name: str
    trainable: int
    errors: tuple[float, ...]


def run_operator(output: Path, *, seed: int = 0, quick: bool = False) -> tuple[Row, ...]:
    """Pretrain an operator, adapt it to few simulations in several ways, and report.

    - `output`: an existing directory for the plot.
    - `seed`: decides all data and initial values.
    - `quick`: train so little that the numbers mean nothing, to see that everything runs.
    """
    default_registry().defaults()  # without the zoo, say so now and not after pretraining
    rates, candidates = (3e-4, 3e-3), (EVERYTHING, *ADAPTERS)
    protocol = burgers.Protocol(rates, steps=200, patience=6)
    effort = Effort(512, 64, 600, (8, 32), candidates, protocol)
    if quick:
        protocol = burgers.Protocol(rates[:1], steps=2, every=2)
        effort = Effort(16, 16, 2, (2, 4), candidates[:2], protocol)
    console = new_console()
    keys = jax.random.split(jax.random.key(seed), 5)
    many = burgers.simulate(keys[0], effort.many, burgers.SOURCE)
    few = burgers.simulate(keys[1], max(effort.counts), burgers.TARGET)
    test = burgers.simulate(keys[2], effort.tested, burgers.TARGET)
    say(
        console,
        f"Burgers equation: {effort.many} simulations at viscosity {burgers.SOURCE:g} to pretrain "
        "a Fourier neural operator on,",
        f"  {' or '.join(map(str, effort.counts))} at viscosity {burgers.TARGET:g} to adapt it; a "
        "quarter of them decides when to stop, and the rate.",
        f"Tested on {effort.tested} others.",
        "",
    )
    with Bar(effort.pretraining, "Pretraining", console=console) as bar:
        model = burgers.operator(keys[3])
        model = burgers.pretrain(model, many, effort.pretraining, batch=16, on_step=bar.advance)
    before = protocol.error(model, test)
    parameters = number_of(Net(model).partition()[0])
    source = protocol.error(model, many)
    say(
        console,
        f"Pretrained {parameters:,} parameters: relative error {source:.3f} at viscosity "
        f"{burgers.SOURCE:g}, {before:.3f} at {burgers.TARGET:g}.",
        "",
    )
    rows = [Row(NOTHING, 0, (before,) * len(effort.counts))]
    models = {NOTHING: model}
    runs = len(effort.candidates) * len(effort.counts) * len(protocol.rates)
    with Bar(runs, console=console) as bar:
        for name in effort.candidates:
            bar.update(what=name)
            errors: list[float] = []
            for count in effort.counts:
                net = Net(model, key=keys[4])
                if name in ADAPTERS:
                    net.freeze()
                    net.lora(_RANK, alpha=_ALPHA, target=_LAYERS, wrapper=ADAPTERS[name])
                adapted = protocol.adapt(net, [part[:count] for part in few], bar.advance)
                errors.append(protocol.error(adapted.model, test))
            rows.append(Row(name, number_of(net.partition()[0]), tuple(errors)))
            models[name] = net.module
    _print_table(console, rows, parameters, effort)
    plot = output / "operator.png"
    errors_by_name = {row.name: row.errors for row in rows}
    shown = {name: models[name] for name in (NOTHING, EVERYTHING, "lora")}
    burgers.draw(plot, errors_by_name, effort.counts, shown, test)
    say(console, f"Plot: {plot}")
    say_what_next(console, "jno-lora demo", "eleven methods on scans of digits")
    return tuple(rows)


def _print_table(console: Console, rows: Sequence[Row], parameters: int, effort: Effort) -> None:
    columns = [("adapter", "left"), ("trainable\nparameters", "right"), ("% of\nmodel", "right")]
    columns += [(f"error from\n{count}", "right") for count in effort.counts]
    rates = ", ".join(f"{rate:g}" for rate in effort.protocol.rates)
    cells = (
        (
            row.name,
            f"{row.trainable:,}",
            f"{100 * row.trainable / parameters:.1f}",
            *(f"{error:.3f}" for error in row.errors),
        )
        for row in rows
    )
    made = table(
        "Relative error by the number of simulations",
        columns,
        cells,
        caption=f"{effort.tested} test fields. Adapters: rank {_RANK}, alpha {_ALPHA:g}.\n"
        f"Rate: the best of {rates} on the validation split. A method that\n"
        "finds nothing better there keeps the model as it was.",
    )
    console.print(made)
    console.print()
