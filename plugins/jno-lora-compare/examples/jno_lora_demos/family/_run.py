"""Run the whole demo of a family, print its results and plot them."""

from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree
from rich.console import Console

from jno.lora import Net, merge_lora
from jno.lora.extending import Bar, default_registry, table
from jno_lora_compare._fitting import parameter_count
from jno_lora_conditional import choose_coordinate, fit

from .. import burgers
from .._output import new_console, say, suggest_commands
from ._candidates import (
    ADAPTER,
    BOTH,
    CONDITIONAL,
    FILM,
    NOTHING,
    POOLED,
    Protocol,
    errors,
    model_at,
    start,
)
from ._data import TESTED, TRAINING, Family, simulate
from ._demo import Demo, Example, Row
from ._picture import draw, draw_example

_GRID = (0.02, 0.035, 0.05, 0.065, 0.08, 0.095, 0.11)  # where the search for a viscosity starts


class Effort(NamedTuple):
    source_simulations: int
    pretraining_steps: int
    simulations: int  # of each training viscosity
    test_simulations: int  # of each tested viscosity
    queries: int  # simulations of each tested viscosity whose viscosity is recovered
    newton_steps: int
    candidates: tuple[str, ...]  # a conditional adapter last
    protocol: Protocol


_UNSEEN = 3  # the tested viscosity whose field is drawn
_ALL = (POOLED, FILM, ADAPTER, CONDITIONAL, BOTH)
_FULL = Effort(256, 600, 8, 32, 16, 8, _ALL, Protocol(steps=200))
_SHORT = Protocol(steps=2, rates=1, every=2, validation=2)
_QUICK = Effort(16, 2, 2, 4, 2, 1, (BOTH,), _SHORT)


def run_family(output: Path, *, seed: int = 0, quick: bool = False) -> Demo:
    """Pretrain an operator, adapt it to four viscosities in several ways, and report.

    **Returns:** the printed numbers. The same seed gives the same numbers on the same machine.
    """
    default_registry().defaults()  # raises before pretraining if the zoo is missing
    effort, console = _QUICK if quick else _FULL, new_console()
    keys = jax.random.split(jax.random.key(seed), 5)
    _print_data(console, effort)
    source = burgers.simulate(keys[1], effort.source_simulations, burgers.SOURCE)
    model = _pretrained(console, effort, keys[0], source)
    family = simulate(keys[2], effort.simulations, TRAINING)
    test = simulate(keys[3], effort.test_simulations, TESTED)
    basis = _chosen_basis(console, model, source, family)
    measure = eqx.filter_jit(errors)
    predict = eqx.filter_jit(
        lambda candidate, nu, fields: burgers.predict(model_at(candidate, nu), fields)
    )
    # The simulation that is drawn has the median error of the untouched model.
    untouched = np.asarray(measure(model, test))[_UNSEEN]
    drawn = int(np.argsort(untouched)[len(untouched) // 2])
    rows: list[Row] = []
    predicted: dict[str, np.ndarray] = {}

    def add(name: str, candidate: PyTree, trained: int, rate: float | None) -> None:
        each = np.asarray(measure(candidate, test))
        band, mean = np.quantile(each, (0.1, 0.9), axis=1), tuple(each.mean(axis=1).tolist())
        rows.append(Row(name, trained, mean, band, rate, _change(model, candidate)))
        if name in (NOTHING, FILM, effort.candidates[-1]):
            nu, field = jnp.asarray(TESTED[_UNSEEN]), test.fields[_UNSEEN, drawn]
            predicted[name] = np.asarray(predict(candidate, nu, field[None]))[0]

    add(NOTHING, model, 0, None)
    candidate = None
    with Bar(len(effort.candidates) * effort.protocol.rates, console=console) as bar:
        for name in effort.candidates:
            bar.update(what=name)
            begin = start(name, model, basis, keys[4])
            candidate, rate = effort.protocol.adapt(name, begin, family, bar.advance)
            add(name, candidate, parameter_count(begin.trainable), rate)
    recovered = _recovered(candidate, test.first(effort.queries), effort)
    pair = (test.fields[_UNSEEN, drawn], test.solutions[_UNSEEN, drawn])
    example = Example(TESTED[_UNSEEN], *pair, predicted)
    plots = (output / "family.png", output / "family-field.png")
    demo = Demo(tuple(rows), recovered, example, plots)
    _print_table(console, demo, parameter_count(Net(model).partition()[0]), effort)
    _print_recovered(console, recovered)
    draw(demo, plots[0])
    draw_example(demo, plots[1])
    say(console, f"Plots: {plots[0]}, {plots[1]}")
    suggest_commands(console, "jno-lora demo", "eleven methods on scans of digits")
    return demo


def _chosen_basis(
    console: Console, model: PyTree, source: burgers.Simulations, family: Family
) -> Any:
    """The basis of the coordinate in which the untouched model's error grows evenly."""
    number = family.number
    data = {burgers.SOURCE: (source[0][:number], source[1][:number])}
    pairs = zip(family.fields, family.solutions, strict=True)
    data |= dict(zip(TRAINING, pairs, strict=True))
    report = choose_coordinate(model, eqx.filter_jit(burgers.loss), data, burgers.SOURCE)
    console.print(report)
    console.print()
    return report.basis


def _pretrained(console: Console, effort: Effort, key: Any, source: burgers.Simulations) -> Any:
    with Bar(effort.pretraining_steps, "Pretraining", console=console) as bar:
        model = burgers.operator(key)
        return burgers.pretrain(
            model, source, effort.pretraining_steps, batch=16, on_step=bar.advance
        )


def _change(model: PyTree, candidate: PyTree) -> float:
    """The largest change of a weight at the pretrained viscosity, with adapters merged."""
    adapted = merge_lora(model_at(candidate, jnp.asarray(burgers.SOURCE)))
    pairs = zip(jax.tree.leaves(model), jax.tree.leaves(adapted), strict=True)
    changes = [jnp.max(jnp.abs(a - b)) for a, b in pairs if eqx.is_inexact_array(a)]
    return float(jnp.max(jnp.stack(changes)))


def _recovered(conditional: Any, queries: Family, effort: Effort) -> np.ndarray:
    """The viscosity of each simulation, found from this simulation alone, all in one program."""

    def viscosity(field: Any, solution: Any) -> Any:
        def error(model: Any) -> Any:
            return jnp.mean((burgers.predict(model, field[None])[0] - solution) ** 2)

        return fit(conditional, error, jnp.asarray(_GRID), steps=effort.newton_steps).z

    many = jax.jit(jax.vmap(jax.vmap(viscosity)))
    return np.asarray(many(queries.fields, queries.solutions))


def _print_data(console: Console, effort: Effort) -> None:
    say(
        console,
        f"Burgers equation: {effort.source_simulations} simulations at viscosity "
        f"{burgers.SOURCE:g} to pretrain a Fourier neural operator on,",
        f"  {effort.simulations} at each of {', '.join(f'{nu:g}' for nu in TRAINING)} to adapt it; "
        "a quarter of these decides when to stop, and the rate.",
        f"Tested on {effort.test_simulations} simulations at each of "
        f"{', '.join(f'{nu:g}' for nu in TESTED)}.",
        "",
    )


def _print_table(console: Console, demo: Demo, parameters: int, effort: Effort) -> None:
    headings = ["trained\n%", "change\nat 0.1", *(f"{nu:g}" for nu in TESTED)]
    columns = [("", "left"), *((heading, "right") for heading in [*headings, "rate"])]
    cells: list[tuple[str, ...]] = []
    for name, trained, error, _, rate, change in demo.rows:
        sizes = (f"{100 * trained / parameters:.1f}", f"{change:.2g}" if change else "0")
        cells.append(
            (name, *sizes, *(f"{e:.3f}" for e in error), "-" if rate is None else f"{rate:g}")
        )
    caption = (
        f"Only the pretraining saw one of these viscosities. {TESTED[-1]:g} lies beyond the "
        "training values."
        "\nChange at 0.1: the largest change of a weight of the pretrained model at its viscosity."
        f"\nRate: the best of {effort.protocol.rates} on the validation split."
    )
    console.print(table("Relative error by viscosity", columns, cells, caption))
    # Rounded as printed, because the compiled programs of equal models may round differently.
    best = [
        min(demo.rows, key=lambda row: round(row.errors[place], 3)).name
        for place in range(len(TESTED))
    ]
    lowest = "; ".join(f"{nu:g}: {name}" for nu, name in zip(TESTED, best, strict=True))
    say(console, f"Lowest error at {lowest}.", "")


def _print_recovered(console: Console, recovered: np.ndarray) -> None:
    columns = [("true viscosity", "right"), ("mean", "right"), ("deviation", "right")]
    columns += [("first simulation", "right")]
    cells = [
        (f"{nu:g}", f"{np.mean(values):.4f}", f"{np.std(values):.4f}", f"{values[0]:.4f}")
        for nu, values in zip(TESTED, recovered, strict=True)
    ]
    caption = (
        f"{recovered.shape[1]} simulations of each viscosity,\neach fitted by itself: "
        f"{recovered.size} fits in one program."
    )
    console.print(
        table("Viscosity by the last candidate, from one simulation", columns, cells, caption)
    )
    console.print()
