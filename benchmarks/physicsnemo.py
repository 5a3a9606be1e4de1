"""One task beside PhysicsNeMo's LoRA: agreement, reach, error, time and memory.

    make bench-physicsnemo, or .venv/bin/python -m benchmarks.physicsnemo [--quick] [PART ...]

PhysicsNeMo's Fourier neural operator (32 channels, 16 modes, 4 blocks) is built in Equinox and in
Torch with the same weights. It was pretrained on Burgers' equation with the viscosity 0.1, as in
the operator study, and is fine-tuned to 0.04 on 16 fields: Adam, batches of 8, 400 steps, a rate
that decays as a cosine. All processes share one core; times are the processor's, as medians of
interleaved rounds. Memory is what a step allocates beside the arrays that it starts from.

The goals, set before the first run:

1. With the same layers and the same initial factors, the losses of all steps agree to 1e-3.
2. A step and a forward pass take at most the time of PhysicsNeMo's faster form, eager or compiled.
3. A step needs at most the memory of PhysicsNeMo's smaller form.
4. With every layer that each LoRA reaches, and tuned rates, our error is lower.
"""

import argparse
import functools
import os
import pathlib
import random
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from studies._families import FULL, QUICK as QUICK_EFFORT, pretrained, simulate

from jno.lora import Net

from ._comparison import QUICK, Comparison, Settings
from ._workers import ROOT, Worker, command, variables
from .sides.jax_physicsnemo import FAMILY, fit, reach

PYTHON = str(ROOT / ".bench" / "physicsnemo" / "bin" / "python")
RATES = tuple(digit * 10.0**power for power in range(-6, 1) for digit in (1, 3))
FIRST = slice(5, 10)  # 3e-4 to 3e-2
RANK = 4
PARTS = ("reach", "agreement", "errors", "times")
SHARED = {"kind": "physicsnemo", "rank": RANK}
# Model, batch and points; the paths in Equinox of the linear layers, all of which both adapt.
TIMED = {
    "operator, 8 x 64 points": {"model": "fno", "batch": 8, "points": 64, "target": "decoder"},
    "operator, 32 x 256 points": {"model": "fno", "batch": 32, "points": 256, "target": "decoder"},
    "MLP of 7 x 512, batch 256": {"model": "mlp", "batch": 256, "target": None},
}


def start(environment: str) -> Worker:
    """The process of a side."""
    python = sys.executable if environment == "ours" else PYTHON
    return Worker(command(python, environment, "cpu"), variables("cpu"))


def fields(steps: int, seeds: int) -> dict[str, np.ndarray]:
    """Fields and solutions of the shifted equation, and the batches of each seed."""
    data: dict[str, Any] = {}
    for seed, (of, number) in enumerate({"train": 16, "validation": 16, "test": 128}.items(), 1):
        data[f"{of}_x"], data[f"{of}_y"] = simulate(FAMILY, seed, number, {"viscosity": 0.04})
    rng = np.random.default_rng(0)
    batches = [[rng.permutation(16)[:8] for _ in range(steps)] for _ in range(seeds)]
    return {name: np.asarray(array) for name, array in {**data, "batches": batches}.items()}


def adapted(model: Any, seed: int, method: str) -> Net:
    """The net of one of our methods."""
    net = Net(model, key=jax.random.key(seed))
    if method == "all parameters":
        return net
    net.freeze()
    if method == "lora 1, cp 4":
        net.lora(4, 8, target="spectral", wrapper="cp")
        return net.lora(1, 2, target="^(?!.*spectral)")
    target = {"hidden layers": "decoder/[01]$", "linear layers": "decoder"}.get(method)
    return net.lora(RANK, RANK, target=target, wrapper="lora")


def ours(model: Any, data: Any, method: str, rates: tuple[float, ...]) -> dict[str, Any]:
    """Our answer to what `torch_physicsnemo.fits` computes."""
    runs, count = [], 0
    for seed, batches in enumerate(data["batches"]):
        net = adapted(model, seed, method)
        count = sum(leaf.size for leaf in jax.tree.leaves(net.partition()[0]))
        arrays = {name: jnp.asarray(array) for name, array in data.items()} | {"batches": batches}
        runs += fit(net, arrays, rates)
    return {"runs": runs, "trainable": count}


def tuned(runs: list[dict[str, Any]]) -> tuple[float, list[float]]:
    """The rate with the lowest mean validation error, and the test errors of its seeds."""

    def of_seeds(rate: float, of: str) -> list[float]:
        return [run[of] for run in runs if run["rate"] == rate]

    rates = {run["rate"] for run in runs}
    best = min(
        rates, key=lambda rate: np.nan_to_num(np.mean(of_seeds(rate, "validation")), nan=np.inf)
    )
    return best, of_seeds(best, "test")


def searched(row: Callable[[Any], dict[str, Any]], rates: tuple[float, ...]) -> Any:
    """What the row answers for these rates and, while the best is at an end, for further rates."""
    answer = row(rates)
    while len(rates) > 1:
        best = RATES.index(tuned(answer["runs"])[0])
        ends = {min(rates): best - 1, max(rates): best + 1}
        if RATES[best] not in ends or not 0 <= ends[RATES[best]] < len(RATES):
            break
        further = RATES[ends[RATES[best]]]
        rates = (*rates, further)
        answer["runs"] += row((further,))["runs"]
    return answer


def agreement(model: Any, data: Any, path: str, theirs: Worker) -> None:
    """Train both with the same hidden layers, factors and rate, and compare every loss."""
    once = data | {"batches": data["batches"][:1]}
    layers = adapted(model, 0, "hidden layers").module.decoder[:2]
    factors = {f"A:decoder_net.layers.{i}.linear": x.lora_A for i, x in enumerate(layers)}
    state = {f"state:{name}": array for name, array in model.state().items()}
    np.savez(path, **once, **state, **factors)
    here = ours(model, once, "hidden layers", (1e-2,))["runs"][0]
    there = fits(theirs, path, (1e-2,), r"decoder_net\.layers", given=True)["runs"][0]
    for of in ("start", "test"):
        print(f"\nError, {of}: {here[of]:.7f} here, {there[of]:.7f} there.")
    expected = np.array(there["losses"])
    worst = float(np.max(np.abs(here["losses"] - expected) / np.abs(expected)))
    number = len(expected)
    print(f"{number} losses agree to {worst:.1e}: goal 1 {verdict(worst <= 1e-3)}.", flush=True)
    np.savez(path, **data, **state)


def fits(
    worker: Worker, path: str, rates: Any, pattern: str = ".", extras: Any = (), given: bool = False
) -> dict[str, Any]:
    """PhysicsNeMo's runs."""
    case = {**SHARED, "do": "fit", "data": path, "rates": rates, "pattern": pattern}
    request = {"do": "build", "as": "fit", "case": {**case, "extras": extras, "given": given}}
    return worker.ask(3600, **request)["facts"]


def errors(model: Any, data: Any, path: str, theirs: Worker, rates: tuple[float, ...]) -> None:
    """Print the error of each method with its tuned rate."""
    methods = ("linear layers", "every layer", "lora 1, cp 4", "all parameters")
    rows: dict[str, Callable[[Any], dict[str, Any]]] = {
        "PhysicsNeMo, all it reaches": functools.partial(fits, theirs, path),
        "PhysicsNeMo, `extras_trainable`": functools.partial(
            fits, theirs, path, extras=("spec_encoder",)
        ),
        **{f"here, {method}": functools.partial(ours, model, data, method) for method in methods},
    }
    print("\n| | trains | rate | test error, % |\n|---|--:|--:|--:|")
    results: dict[str, float] = {}
    for name, row in rows.items():
        answer = searched(row, rates)
        rate, seeds = tuned(answer["runs"])
        results[name] = statistics.fmean(seeds)
        low, high = (f"{100 * bound(seeds):.2f}" for bound in (min, max))
        cells = f"{rate:g} | {100 * results[name]:.2f} ({low} to {high})"
        print(f"| {name} | {answer['trainable']:,} | {cells} |", flush=True)
    lower = results["here, every layer"] < results["PhysicsNeMo, all it reaches"]
    print(f"\nGoal 4 {verdict(lower)}.")


def reached(theirs: Worker) -> None:
    """Print the fraction of each model's parameters in layers that get an adapter."""
    request = {"do": "build", "as": "reach", "case": {**SHARED, "do": "reach"}}
    there, here = theirs.ask(600, **request)["facts"], reach()
    print('\n| | PhysicsNeMo | here | here, `wrapper="lora"` |\n|---|--:|--:|--:|')
    for name, fact in here.items():
        peer = f"{there[name]['reached']:.2%}" if name in there else ""
        print(f"| {name} | {peer} | {fact['unnamed']:.2%} | {fact['reached']:.2%} |")


def times(settings: Settings) -> None:
    """Print ratios of times and memory, ours over each form of PhysicsNeMo's."""
    print("\n| ours / PhysicsNeMo | | eager | compiled | goal |\n|---|---|--:|--:|---|")
    for name, spec in TIMED.items():
        sides: dict[str, Any] = {
            "ours": {"env": "ours"},
            "eager": {"env": "physicsnemo", "compile": False},
            "compiled": {"env": "physicsnemo", "compile": True},
            "every layer": {"env": "ours", "target": None},
        }
        case = {**SHARED, **spec, "do": "time", "name": name, "sides": sides}
        case |= {"measures": ("step", "forward"), "timeout": 600}
        record = Comparison(case, start, settings, random.Random(0)).run()
        statuses = {side: facts["status"] for side, facts in record["sides"].items()}
        lost = {side: status for side, status in statuses.items() if status != "ok"}
        print("\n".join(time_rows(name, record["ratios"], spec["target"] is not None)), flush=True)
        if lost:
            print(f"Not measured: {lost}", file=sys.stderr)


def time_rows(name: str, ratios: dict[str, Any], has_every_layer: bool) -> Iterator[str]:
    """The rows of a model. A goal needs both forms: either may be the faster or the smaller."""
    for measure, goal in (("step", 2), ("forward", 2), ("temp", 3)):
        forms = [ratios.get(measure, {}).get(side) for side in ("eager", "compiled")]
        cells = " | ".join(shown(form) for form in forms)
        is_met = None if None in forms else all(form["median"] <= 1 for form in forms)
        label = "memory of a step" if measure == "temp" else measure
        yield f"| {name} | {label} | {cells} | {goal} {verdict(is_met)} |"
    if has_every_layer:
        ratio = ratios.get("step", {}).get("every layer")
        more = "not measured" if ratio is None else f"{1 / ratio['median']:.2f} of our step"
        yield f"| {name} | | | | adapters on every layer: {more} |"


def shown(ratio: dict[str, Any] | None) -> str:
    """A ratio with its quartiles."""
    if ratio is None:
        return "not measured"
    quartiles = f" [{ratio['q1']:.2f}, {ratio['q3']:.2f}]" if ratio["rounds"] > 1 else ""
    return f"{ratio['median']:.2f}{quartiles}"


def verdict(is_met: bool | None) -> str:
    """What is said of a goal. `None` means that a side is missing."""
    if is_met is None:
        return "not measured"
    return "met" if is_met else "missed"


def main() -> None:
    """Measure everything and print it."""
    parser = argparse.ArgumentParser(description="One task beside PhysicsNeMo's LoRA.")
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; or all")
    parser.add_argument("--quick", action="store_true", help="few steps, to check that it runs")
    options = parser.parse_args()
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"PART is one of {', '.join(PARTS)}; got {', '.join(sorted(unknown))}.")
    if not pathlib.Path(PYTHON).exists():
        sys.exit(f"{PYTHON} is missing: run make bench-physicsnemo.")
    # All processes inherit it. On several cores, each thread would wait for the busiest core.
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    quick, parts = options.quick, options.parts or PARTS
    theirs = start("physicsnemo")
    try:
        print(theirs.ask(600, do="hello")["versions"], flush=True)
        if "reach" in parts:
            reached(theirs)
        if {"agreement", "errors"} & set(parts):
            model = pretrained(FAMILY, QUICK_EFFORT if quick else FULL)
            data = fields(*(4, 1) if quick else (400, 3))
            with tempfile.TemporaryDirectory() as folder:
                path = str(pathlib.Path(folder) / "data.npz")
                agreement(model, data, path, theirs)
                if "errors" in parts:
                    errors(model, data, path, theirs, RATES[7:8] if quick else RATES[FIRST])
    finally:
        theirs.close()
    if "times" in parts:
        times(QUICK if quick else Settings())


if __name__ == "__main__":
    main()
