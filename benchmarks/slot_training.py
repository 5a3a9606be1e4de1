"""Ways to step the adapters of a bank whose examples are in a batch.

    python -m benchmarks.slot_training [--quick]

The time of a step of Adam (in place) for a bank of 64 adapters of an MLP, over a step for a single
adapter on the same 256 examples. docs/design.md says why only the first way was taken.

* **all slots**: `AdapterBank.optimiser`.
* **present slots, copied**: the factors and the state of the slots in the batch are copied out,
  stepped, and written back. The other slots do not move at all.
* **present slots, in a loop**: one slot at a time is stepped where it lies.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

from jno.lora import extract_adapters
from jno_lora_bank import AdapterBank, at_slot

from .many_adapters import Case, at_random, cases, interleaved, trained, training
from .reading import over

ADAM = optax.adam(1e-4)


def rows_of(tree: Any, count: int, of_array: Callable[[Any], Any]) -> Any:
    """`of_array` of each array that has an axis of slots in front."""
    has_slots = lambda a: getattr(a, "ndim", 0) and len(a) == count  # noqa: E731
    return jax.tree.map(lambda a: of_array(a) if has_slots(a) else a, tree)


def copied(loss: Any, trees: Any, arrays: Any, slots: Any, count: int, present: int) -> Any:
    """Present slots, copied."""
    places = jnp.unique(slots, size=present, fill_value=0)
    (factors, state), arrays = (rows_of(t, count, lambda a: a[places]) for t in (trees, arrays))
    gradients = jax.grad(loss)(factors, arrays, jnp.searchsorted(places, slots))
    updates, state = jax.vmap(ADAM.update)(gradients, state, factors)
    new = eqx.apply_updates(factors, updates), state
    return jax.tree.map(lambda a, b: a.at[places].set(b, unique_indices=True), trees, new)


def looped(loss: Any, trees: Any, arrays: Any, slots: Any, count: int, present: int) -> Any:
    """Present slots, in a loop."""
    places = jnp.unique(slots, size=present, fill_value=0)
    gradients = jax.grad(loss)(trees[0], arrays, slots)

    def step(i: Any, trees: Any) -> Any:
        place = places[i]
        factors, state, of_slot = jax.tree.map(lambda a: a[place], (*trees, gradients))
        updates, state = ADAM.update(of_slot, state, factors)
        new = eqx.apply_updates(factors, updates), state
        return jax.tree.map(lambda a, b: a.at[place].set(b), trees, new)

    return jax.lax.fori_loop(0, present, step, trees)


def sides(case: Case, count: int, present: int) -> dict[str, Callable[[], Any]]:
    """Steps of training in place that go on from the last step."""
    bank = AdapterBank(case.model, [extract_adapters(trained(case, i)) for i in range(count)])
    optimiser = bank.optimiser(optax.adam, dict.fromkeys(bank.slots, 1e-4))
    trainable, frozen = bank.partition()
    arrays, static = eqx.partition(frozen, eqx.is_array)
    slots = at_random(present, len(case.xs)) * (count // present) + 1

    def loss(factors: Any, arrays: Any, slots: Any) -> Any:
        model = eqx.combine(factors, arrays, static)
        return jnp.mean(jax.vmap(lambda slot, x: at_slot(model, slot)(x))(slots, case.xs) ** 2)

    def whole(loss: Any, trees: Any, arrays: Any, slots: Any, *_: int) -> Any:
        factors, state = trees
        updates, state = optimiser.update(jax.grad(loss)(factors, arrays, slots), state, factors)
        return eqx.apply_updates(factors, updates), state

    def in_place(way: Any) -> Callable[[], Any]:
        step = jax.jit(
            lambda trees, arrays, slots: way(loss, trees, arrays, slots, count + 1, present),
            donate_argnums=0,
        )
        now = [(jax.tree.map(jnp.copy, trainable), optimiser.init(trainable))]

        def run() -> Any:
            now[0] = step(now[0], arrays, slots)
            return now[0][0]

        return run

    ways = {"all slots": whole, "copied": copied, "in a loop": looped}
    return {"step of one": training(case, 1)["step of one"]} | {
        name: in_place(way) for name, way in ways.items()
    }


def main() -> None:
    """Measure all ways and print them."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="small shapes, to check that it runs")
    quick = parser.parse_args().quick
    case, count = cases(quick)[0], 4 if quick else 64
    print("| present | all slots | present slots, copied | present slots, in a loop |")
    print("|---|---|---|---|")
    for present in (count, count // 4 if quick else 8):
        programs = sides(case, count, present)
        new = [jax.tree.leaves(run()) for name, run in programs.items() if name != "step of one"]
        for of_way in new[1:]:  # the first step is the same step
            assert all(map(lambda a, b: bool(jnp.allclose(a, b, atol=1e-5)), new[0], of_way))
        seconds = interleaved(programs, time.process_time, 2 if quick else 9)
        cells = [over(seconds, name, "step of one") for name in programs if name != "step of one"]
        print(f"| {present} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
