"""Many adapters of one model in one batch, each example with its own, over the model alone.

    python -m benchmarks.many_adapters [--quick] [--training] [--device cpu|gpu]

* **bank**: an `AdapterBank`; its program reads each example's slot.
* **stack**: `stack_adapters`; each example of a `vmap` takes its adapter from the stack.
* **one by one**: the examples sorted by adapter; one program, run once for each adapter.
* **base**: the plain model on the whole batch, the lower limit.

The adapters are LoRA of rank 16 on all linear layers, and the examples use them in random order.
The gradient of a loss and a step of Adam are for all adapters in a bank, over the same for a single
adapter on the same examples.

Ratios are formed within a round, in which every side has its turn in random order; the tables show
medians and quartiles. On a CPU the time is the processor's, of all threads, so that other programs
count less. On a GPU it is wall time.
"""

import argparse
import dataclasses
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import optax

from jno.lora import (
    apply_lora,
    extract_adapters,
    lora_trainable_filter,
    save_adapters,
    swap_adapters,
)
from jno_lora_bank import AdapterBank, at_slot
from jno_lora_combine import stack_adapters, take_adapters

from .reading import over

COUNTS = (1, 8, 64, 256)


@dataclasses.dataclass(frozen=True)
class Case:
    """A model, and the examples of a batch."""

    name: str
    model: Any
    xs: Any
    rank: int


class Block(eqx.Module):
    """A transformer block: attention, and two layers with a residual around both."""

    attention: eqx.nn.MultiheadAttention
    up: eqx.nn.Linear
    down: eqx.nn.Linear

    def __init__(self, size: int, key: Any):
        keys = jr.split(key, 3)
        self.attention = eqx.nn.MultiheadAttention(4, size, key=keys[0])
        self.up = eqx.nn.Linear(size, 4 * size, key=keys[1])
        self.down = eqx.nn.Linear(4 * size, size, key=keys[2])

    def __call__(self, x: Any) -> Any:
        """The features of one sequence of tokens."""
        x = x + self.attention(x, x, x)
        return x + jax.vmap(self.down)(jax.nn.gelu(jax.vmap(self.up)(x)))


def cases(quick: bool) -> list[Case]:
    """The models of the tables."""
    width, size, tokens, batch, rank = (32, 16, 3, 8, 2) if quick else (1024, 256, 16, 256, 16)
    key = jr.key(0)
    mlp = eqx.nn.MLP(width, width, width, 3, key=key)
    block = Block(size, key)
    return [
        Case(f"MLP of 4 x {width}", mlp, jr.normal(key, (batch, width)), rank),
        Case(
            f"block of {size}, {tokens} tokens", block, jr.normal(key, (batch, tokens, size)), rank
        ),
    ]


def main() -> None:
    """Measure everything and print it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="small shapes, to check that it runs")
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--training", action="store_true", help="only the tables of training")
    options = parser.parse_args()
    jax.config.update("jax_platforms", {"cpu": "cpu", "gpu": "cuda"}[options.device])
    clock = time.process_time if options.device == "cpu" else time.perf_counter
    counts, rounds = ((1, 4), 2) if options.quick else (COUNTS, 15)
    for case in cases(options.quick):
        print(f"\n{case.name}, rank {case.rank}, batch {len(case.xs)}")
        if not options.training:
            print("\n| adapters, over the base alone | bank | stack | one by one |")
            print("|---|---|---|---|")
            for count in counts:
                seconds = interleaved(serving(case, count), clock, rounds)
                cells = [over(seconds, side, "base") for side in ("bank", "stack", "one by one")]
                print(f"| {count} | {' | '.join(cells)} |", flush=True)
        print("\n| adapters | gradient, over one adapter | step of Adam, over one adapter |")
        print("|---|---|---|")
        for count in counts:
            seconds = interleaved(training(case, count), clock, rounds)
            cells = [over(seconds, side, f"{side} of one") for side in ("gradient", "step")]
            print(f"| {count} | {' | '.join(cells)} |", flush=True)
    for count in (count for count in counts[-2:] if count > 1 and not options.training):
        print("\n" + housekeeping(cases(options.quick)[0], count, clock))
        print("\n" + floors(cases(options.quick)[0], count, clock, rounds))


def interleaved(
    sides: dict[str, Callable[[], Any]], clock: Callable[[], float], rounds: int
) -> list[dict[str, float]]:
    """The seconds of each side in each round."""
    for run in sides.values():  # compiles
        jax.block_until_ready(run())
    seconds: list[dict[str, float]] = []
    for _ in range(rounds):
        taken: dict[str, float] = {}
        for side in random.sample(list(sides), len(sides)):
            start = clock()
            jax.block_until_ready(sides[side]())
            taken[side] = clock() - start
        seconds.append(taken)
    return seconds


def at_random(count: int, batch: int) -> Any:
    """The number of each example's adapter: equal shares, in random order."""
    return jr.permutation(jr.key(1), jnp.arange(batch) * count // batch)


def serving(case: Case, count: int) -> dict[str, Callable[[], Any]]:
    """Functions that compute the batch."""
    sets = [extract_adapters(trained(case, seed)) for seed in range(count)]
    stacked, bank = stack_adapters(sets), AdapterBank(case.model, sets).snapshot().model
    numbers = at_random(count, len(case.xs))
    groups = jnp.split(case.xs[jnp.argsort(numbers)], count)

    def of_stack(model: Any, stacked: Any, index: Any, x: Any) -> Any:
        return swap_adapters(model, take_adapters(stacked, index))(x)

    plain = eqx.filter_jit(lambda model, xs: jax.vmap(model)(xs))
    with_set = eqx.filter_jit(
        lambda model, adapters, xs: jax.vmap(swap_adapters(model, adapters))(xs)
    )
    per_example = eqx.filter_jit(eqx.filter_vmap(of_stack, in_axes=(None, None, 0, 0)))
    with_bank = eqx.filter_jit(
        lambda model, slots, xs: jax.vmap(lambda slot, x: at_slot(model, slot)(x))(slots, xs)
    )
    sides = {
        "base": lambda: plain(case.model, case.xs),
        "bank": lambda: with_bank(bank, numbers + 1, case.xs),
        "stack": lambda: per_example(case.model, stacked, numbers, case.xs),
        "one by one": lambda: [
            with_set(case.model, adapters, group)
            for adapters, group in zip(sets, groups, strict=True)
        ],
    }
    assert jnp.allclose(sides["bank"](), sides["stack"](), atol=1e-2)
    return sides


def training(case: Case, count: int) -> dict[str, Callable[[], Any]]:
    """Gradients and steps of many adapters at once, and of a single adapter with all examples."""
    bank = AdapterBank(case.model, [extract_adapters(trained(case, i)) for i in range(count)])
    of_all = bank.optimiser(optax.adam, dict.fromkeys(bank.slots, 1e-4))
    slots = at_random(count, len(case.xs)) + 1

    def many(model: Any, xs: Any) -> Any:
        return jax.vmap(lambda slot, x: at_slot(model, slot)(x))(slots, xs)

    adapted = trained(case, 0)
    single = eqx.partition(adapted, lora_trainable_filter(adapted))
    of_many = steps_of(of_all, bank.partition(), many, case.xs)
    of_one = steps_of(optax.adam(1e-4), single, lambda m, xs: jax.vmap(m)(xs), case.xs)
    return of_many | {f"{name} of one": run for name, run in of_one.items()}


def steps_of(
    optimiser: Any, partition: tuple[Any, Any], run: Callable[..., Any], xs: Any
) -> dict[str, Callable[[], Any]]:
    """The gradient of a loss, and a step of training in place that goes on from the last step."""
    trainable, frozen = partition

    def gradient(trainable: Any, frozen: Any, xs: Any) -> Any:
        def loss(trainable: Any) -> Any:
            return jnp.mean(run(eqx.combine(trainable, frozen), xs) ** 2)

        return eqx.filter_grad(loss)(trainable)

    def update(trainable: Any, state: Any, frozen: Any, xs: Any) -> Any:
        gradients = gradient(trainable, frozen, xs)
        updates, state = optimiser.update(gradients, state, trainable)
        return eqx.apply_updates(trainable, updates), state

    compiled = jax.jit(
        lambda trainable, state, arrays, xs: update(
            trainable, state, eqx.combine(arrays, static), xs
        ),
        donate_argnums=(0, 1),
    )
    arrays, static = eqx.partition(frozen, eqx.is_array)
    now = [(jax.tree.map(jnp.copy, trainable), optimiser.init(trainable))]

    def run_once() -> Any:
        now[0] = compiled(*now[0], arrays, xs)
        return now[0][0]

    only = eqx.filter_jit(gradient)
    return {"gradient": lambda: only(trainable, frozen, xs), "step": run_once}


def housekeeping(case: Case, count: int, clock: Callable[[], float]) -> str:
    """The memory of an adapter, and the time to add its file until a call can use it.

    The time of the call itself is measured by a second call, and subtracted.
    """
    adapters = extract_adapters(trained(case, 0))
    banks = [AdapterBank(case.model, [adapters], slots=slots) for slots in (1, count)]
    small, large = (nbytes(bank.snapshot().model) for bank in banks)
    growth = (large - small) / (count - 1)
    bank = AdapterBank(case.model, [adapters], slots=count)
    bank.add(adapters, "first")
    seconds: dict[str, list[float]] = {"in place": [], "beside a snapshot": []}
    with tempfile.NamedTemporaryFile(suffix=".safetensors") as file:
        save_adapters(swap_adapters(case.model, adapters), file.name)
        for turn in range(24):
            bank.remove("first")
            snapshot = bank.snapshot() if turn % 2 else None
            jax.block_until_ready(bank.run(["0"], case.xs[:1]))
            start = clock()
            bank.add(file.name, "first")
            jax.block_until_ready(bank.run(["first"], case.xs[:1]))
            ready = clock()
            jax.block_until_ready(bank.run(["first"], case.xs[:1]))
            taken = (ready - start) - (clock() - ready)
            if turn > 3:
                seconds["in place" if snapshot is None else "beside a snapshot"].append(taken)
    times = ", ".join(
        f"{1000 * sorted(values)[len(values) // 2]:.1f} ms {how}" for how, values in seconds.items()
    )
    return (
        f"{count} slots of {case.name}: an adapter takes {growth / nbytes(adapters):.3f} "
        f"times its bytes, and adding a file {times} (median)."
    )


def floors(case: Case, count: int, clock: Callable[[], float], rounds: int) -> str:
    """The time of programs that only write all factors, the lower limit of any training step."""
    bank = AdapterBank(case.model, [extract_adapters(trained(case, 0))] * count)
    factors = bank.partition()[0]
    adam = optax.adam(1e-4)
    now = [jax.tree.map(jnp.copy, factors), (jax.tree.map(jnp.copy, factors), adam.init(factors))]

    def step(carry: Any, gradients: Any) -> Any:
        factors, state = carry
        updates, state = adam.update(gradients, state, factors)
        return eqx.apply_updates(factors, updates), state

    def twice(tree: Any) -> Any:
        return jax.tree.map(lambda a: 2 * a, tree)

    anew, in_place = jax.jit(twice), jax.jit(twice, donate_argnums=0)
    stepped = jax.jit(step, donate_argnums=0)

    def run_in_place() -> Any:
        now[0] = in_place(now[0])
        return now[0]

    def run_step() -> Any:
        now[1] = stepped(now[1], factors)
        return now[1]

    sides = {
        "written to new arrays": lambda: anew(factors),
        "written in place": run_in_place,
        "stepped by Adam in place": run_step,
    }
    seconds = interleaved(sides, clock, rounds)
    times = ", ".join(
        f"{1000 * statistics.median(taken[side] for taken in seconds):.1f} ms {side}"
        for side in sides
    )
    return f"All factors of {count} adapters ({nbytes(factors) / 2**20:.0f} MiB): {times} (median)."


def nbytes(tree: Any) -> int:
    """The bytes of all arrays."""
    return sum(x.nbytes for x in jax.tree.leaves(tree) if eqx.is_array(x))


def trained(case: Case, seed: int) -> Any:
    """The model with adapters that have left their initial values."""
    adapted = apply_lora(case.model, case.rank, float(case.rank), key=jr.key(seed))
    trainable, frozen = eqx.partition(adapted, lora_trainable_filter(adapted))
    return eqx.combine(jax.tree.map(lambda a: a + 0.01, trainable), frozen)


if __name__ == "__main__":
    main()
