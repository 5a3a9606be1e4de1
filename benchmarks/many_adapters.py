"""Many adapters on one base in one batch: each example with its own, against other ways to do it.

    python -m benchmarks.many_adapters [--quick]

* **own**: one program in which each example takes its adapter out of a stack (`stack_adapters`).
* **one by one**: the examples sorted by adapter; one program, run once for each adapter.
* **merge and run**: each adapter merged into the weights, and the plain model run on its examples.
* **merged before**: the same with merged models that are kept: as many copies of the weights.
* **base**: the plain model on the whole batch, which no way can beat.

Ratios of seconds are formed within a round, in which every side has its turn in random order; the
table shows their medians and quartiles. Less than 1 means that "own" takes less. Memory and flops
are what XLA says of the compiled programs.
"""

import argparse
import dataclasses
import random
import time
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from jno.lora import (
    apply_lora,
    extract_adapters,
    lora_trainable_filter,
    merge_lora,
    stack_adapters,
    swap_adapters,
    take_adapters,
)

from ._ratios import per_round


@dataclasses.dataclass(frozen=True)
class Case:
    """How many adapters, of which rank, for how many examples, on how wide a model."""

    adapters: int
    batch: int
    width: int
    rank: int


CASES = [
    Case(adapters, batch, 1024, 8)
    for adapters, batch in [(8, 8), (8, 64), (8, 256), (64, 64), (64, 256)]
]


def main() -> None:
    """Time every case and print its ratios."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="one small case: does it run?")
    quick = parser.parse_args().quick
    for case in [Case(4, 8, 64, 2)] if quick else CASES:
        report(case, rounds=3 if quick else 25)


def report(case: Case, rounds: int) -> None:
    """Print what `own` takes, in units of the other sides."""
    sides, programs = sides_of(case)
    expected = sides["own"]()
    for name, run in sides.items():  # compiles
        result = run()
        assert name == "base" or jnp.allclose(result, expected, atol=1e-3), name
    seconds: list[dict[str, float]] = []
    for _ in range(rounds):
        order = random.sample(list(sides), len(sides))
        seconds.append({name: timed(sides[name]) for name in order})
    print(case)
    for other, ratio in per_round(seconds, "own").items():
        quartiles = f"[{ratio['q1']:.2f}, {ratio['q3']:.2f}]"
        print(f"  time of own / {other:14} {ratio['median']:.2f} {quartiles}")
    for name, compiled in programs.items():
        flops = compiled.cost_analysis()["flops"]
        temporary = compiled.memory_analysis().temp_size_in_bytes
        print(f"  {name}: {flops:.3g} flops, {temporary / 2**20:.2f} MiB of intermediate results")


def timed(run: Callable[[], Any]) -> float:
    """The seconds of one call."""
    start = time.perf_counter()
    jax.block_until_ready(run())
    return time.perf_counter() - start


def sides_of(case: Case) -> tuple[dict[str, Callable[[], Any]], dict[str, Any]]:
    """Functions that compute the batch, and the compiled programs of two of them."""
    key = jax.random.key(0)
    model = eqx.nn.MLP(case.width, case.width, case.width, 3, key=key)
    adapted = [trained(model, case.rank, seed) for seed in range(case.adapters)]
    sets = [extract_adapters(one) for one in adapted]
    stacked = stack_adapters(sets)
    x = jax.random.normal(key, (case.batch, case.width))
    own = jnp.arange(case.batch) * case.adapters // case.batch  # sorted, and as many of each
    groups = jnp.split(x, case.adapters)

    def of_example(model: Any, stacked: Any, index: Any, x: Any) -> Any:
        return swap_adapters(model, take_adapters(stacked, index))(x)

    per_example = eqx.filter_jit(eqx.filter_vmap(of_example, in_axes=(None, None, 0, 0)))
    with_one = eqx.filter_jit(lambda model, one, x: jax.vmap(swap_adapters(model, one))(x))
    plain = eqx.filter_jit(lambda model, x: jax.vmap(model)(x))
    merge = eqx.filter_jit(lambda model, one: merge_lora(swap_adapters(model, one)))
    kept = [merge_lora(one) for one in adapted]

    def together(outputs: Any) -> Any:
        return jnp.concatenate(list(outputs))

    sides = {
        "own": lambda: per_example(model, stacked, own, x),
        "one by one": lambda: together(map(with_one, [model] * len(sets), sets, groups)),
        "merge and run": lambda: together(
            plain(merge(model, one), group) for one, group in zip(sets, groups, strict=True)
        ),
        "merged before": lambda: together(map(plain, kept, groups)),
        "base": lambda: plain(model, x),
    }
    programs = {
        "own": per_example.lower(model, stacked, own, x).compile().compiled,
        "base": plain.lower(model, x).compile().compiled,
    }
    return sides, programs


def trained(model: Any, rank: int, seed: int) -> Any:
    """`model` with adapters that have moved away from their start."""
    key = jax.random.key(seed)
    adapted = apply_lora(model, rank, float(rank), key=key)
    trains, rest = eqx.partition(adapted, lora_trainable_filter(adapted))
    return eqx.combine(jax.tree.map(lambda a: a + 0.01, trains), rest)


if __name__ == "__main__":
    main()
