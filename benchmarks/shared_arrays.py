"""The memory and time of a gradient whose layers share frozen arrays, held in several ways.

    python -m benchmarks.shared_arrays

Eight `Linear(512, 512)` on a batch of 64, with VeRA's matrices of rank 256 shared: the layers in a
list, and as a stack that `lax.scan` runs. Prints, for the compiled gradient, the number of arrays
that it takes, the memory of their distinct buffers, the temporary memory that XLA plans, and the
median time of a call, in rounds that alternate between the programs.
"""

import functools
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

import jno.lora
from jno.lora._shared_arrays import filler, without_shared
from jno.lora.extending import map_adapters

LAYERS, SIZE, RANK, BATCH, ROUNDS = 8, 512, 256, 64, 200


def held_by_the_first(layers: Any) -> Any:
    """`layers` in which the first adapter alone holds the arrays, as if they were trained."""
    return [layers[0], *map(without_shared, layers[1:])]


def copied(layers: Any) -> Any:
    """`layers` with a copy of each shared array for each layer."""
    fill = filler(layers)
    filled = map_adapters(lambda path, adapter: fill(adapter), layers)
    return jax.tree.map(lambda x: x.copy() if eqx.is_array(x) else x, filled)


def run(layers: Any, x: Any) -> Any:
    """The layers of a list, one after the other."""
    for layer in layers:
        x = jnp.tanh(layer(x))
    return x


def scan(layers: Any, x: Any) -> Any:
    """The layers of a stack, one after the other."""
    arrays, static = eqx.partition(layers, eqx.is_array)

    def body(x: Any, slices: Any) -> Any:
        return jnp.tanh(eqx.combine(slices, static)(x)), None

    return jax.lax.scan(body, x, arrays)[0]


def cases() -> Iterator[tuple[str, Any, Callable[..., Any], Callable[..., Any]]]:
    """Name, model, how the loss prepares the model, and how it runs it."""
    keys = jax.random.split(jax.random.key(0), LAYERS)
    plain = [eqx.nn.Linear(SIZE, SIZE, key=key) for key in keys]
    stack = eqx.filter_vmap(lambda key: eqx.nn.Linear(SIZE, SIZE, key=key))(keys)
    settings: Any = {"key": jax.random.key(1), "wrappers": "vera-shared"}
    layers = jno.lora.apply_lora(plain, RANK, **settings)
    stacked = jno.lora.apply_lora(stack, RANK, **settings)
    same = lambda model: model  # noqa: E731
    yield "list: one array in all adapters", layers, same, run
    yield "list: in the first, `resolve`", held_by_the_first(layers), jno.lora.resolve, run
    yield "list: a copy in each adapter", copied(layers), same, run
    yield "stack: a copy for each layer", stacked, same, scan


def main() -> None:
    """Compile the programs, and print the table."""
    batch = jnp.ones((BATCH, SIZE))
    programs: dict[str, Callable[[], Any]] = {}
    lines: dict[str, str] = {}
    for name, model, ready, call in cases():
        trainable, frozen = eqx.partition(model, jno.lora.lora_trainable_filter(model))

        def loss(trainable: Any, frozen: Any, ready: Any = ready, call: Any = call) -> Any:
            whole = ready(eqx.combine(trainable, frozen))
            return jnp.mean(jax.vmap(functools.partial(call, whole))(batch) ** 2)

        step: Any = eqx.filter_jit(eqx.filter_grad(loss))
        compiled = step.lower(trainable, frozen).compile()
        arrays = [x for x in jax.tree.leaves((trainable, frozen)) if eqx.is_array(x)]
        buffers = {x.unsafe_buffer_pointer(): x.nbytes for x in arrays}
        temporary = compiled.compiled.memory_analysis().temp_size_in_bytes
        held, temporary = sum(buffers.values()) / 1e6, temporary / 1e6
        lines[name] = f"| {name} | {len(arrays)} | {held:.1f} MB | {temporary:.1f} MB"
        programs[name] = lambda compiled=compiled, args=(trainable, frozen): compiled(*args)
    times: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(ROUNDS):
        for name, program in programs.items():
            start = time.perf_counter()
            jax.block_until_ready(program())
            times[name].append(time.perf_counter() - start)
    print("| | arrays | their memory | temporary memory | time |\n|---|--:|--:|--:|--:|")
    for name, line in lines.items():
        print(f"{line} | {1e3 * statistics.median(times[name]):.2f} ms |")


if __name__ == "__main__":
    main()
