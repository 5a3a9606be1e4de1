"""A step of many small networks at once, and the bytes that each network adds.

    python -m benchmarks.many_networks [--quick]

Networks of one base (four layers of width 64, two inputs, a physics-informed loss with second
derivatives at 256 points) train under `vmap`: all parameters of each network; a stack of LoRAs of
rank 4, which `stack_adapters` makes; and a bank with a slot for each network. Time is the
processor's, of all threads; rounds are interleaved, and the table shows medians and quartiles.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jno.lora import apply_lora, extract_adapters, lora_trainable_filter, swap_adapters
from jno_lora_bank import AdapterBank, at_slot
from jno_lora_combine import stack_adapters

OPTIMISER = optax.adam(1e-3)


def residual(network: Any, points: jax.Array, force: jax.Array) -> jax.Array:
    """The mean square of `u_xx + u_yy - force`."""

    def laplacian(point: jax.Array) -> jax.Array:
        return jnp.trace(jax.hessian(lambda x: network(x)[0])(point))

    return jnp.mean((jax.vmap(laplacian)(points) - force) ** 2)


def stepped(loss: Callable[[Any, jax.Array], jax.Array], forces: jax.Array) -> Callable[..., Any]:
    """A compiled step of all networks. `loss(parameters, force)` is the loss of one network."""

    def step(parameters: Any, moments: Any, force: jax.Array) -> Any:
        gradient = jax.grad(loss)(parameters, force)
        updates, moments = OPTIMISER.update(gradient, moments, parameters)
        return eqx.apply_updates(parameters, updates), moments

    compiled = eqx.filter_jit(eqx.filter_vmap(step))
    return lambda parameters, moments: compiled(parameters, moments, forces)


def sides(networks: int, width: int, points: int) -> dict[str, tuple[Callable[..., Any], Any, int]]:
    """By name: the step, its state, and the bytes of one network beside the base."""
    keys = jax.random.split(jax.random.key(0), networks)
    base = eqx.nn.MLP(2, 1, width, 4, jnp.tanh, key=keys[0])
    x, forces = jax.random.normal(keys[1], (points, 2)), jnp.linspace(1.0, 2.0, networks)

    arrays, rest = eqx.partition(base, eqx.is_inexact_array)
    full = jax.tree.map(lambda array: jnp.stack([array] * networks), arrays)
    full_step = stepped(lambda p, force: residual(eqx.combine(p, rest), x, force), forces)

    sets = [extract_adapters(apply_lora(base, 4, key=key)) for key in keys]
    stack = stack_adapters(sets)
    trains = lora_trainable_filter(swap_adapters(base, sets[0]))
    _, frozen = eqx.partition(swap_adapters(base, sets[0]), trains)
    halves = eqx.filter_vmap(lambda adapters: eqx.filter(swap_adapters(base, adapters), trains))
    lora = halves(stack)
    lora_step = stepped(lambda p, force: residual(eqx.combine(p, frozen), x, force), forces)

    bank = AdapterBank(base, sets)
    slots = np.arange(1, networks + 1)
    trainable, constants = bank.partition()

    def of_all(factors: Any) -> jax.Array:
        model = eqx.combine(factors, constants)
        losses = jax.vmap(lambda slot, f: residual(at_slot(model, slot), x, f))(slots, forces)
        return jnp.sum(losses)

    @eqx.filter_jit
    def bank_step(factors: Any, moments: Any) -> Any:
        updates, moments = OPTIMISER.update(jax.grad(of_all)(factors), moments, factors)
        return eqx.apply_updates(factors, updates), moments

    def size(tree: Any) -> int:
        return sum(leaf.nbytes for leaf in jax.tree.leaves(tree)) // networks

    of_each = eqx.filter_vmap(OPTIMISER.init)
    return {
        "all parameters": (full_step, (full, of_each(full)), size(full)),
        "a stack of LoRAs": (lora_step, (lora, of_each(lora)), size(lora)),
        "a bank": (bank_step, (trainable, OPTIMISER.init(trainable)), size(lora)),
    }


def main() -> None:
    """Measure everything and print it."""
    parser = argparse.ArgumentParser(description="A step of many small networks at once.")
    parser.add_argument("--quick", action="store_true", help="small shapes, to check that it runs")
    quick = parser.parse_args().quick
    steps = sides(*((3, 8, 8) if quick else (20, 64, 256)))
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(2 if quick else 12):  # the first round compiles
        for name, (step, state, _size) in steps.items():
            start = time.process_time()
            jax.block_until_ready(step(*state))
            seconds[name].append(time.process_time() - start)
    print("| | ms of a step | bytes of a network |\n|---|---|---|")
    for name, (_, _, size) in steps.items():
        low, middle, high = np.quantile(seconds[name][1:], (0.25, 0.5, 0.75)) * 1e3
        print(f"| {name} | {middle:.0f} [{low:.0f}, {high:.0f}] | {size:,} |")


if __name__ == "__main__":
    main()
