"""The memory of a step whose layers share arrays: resolved, and with a copy for each layer.

    python -m benchmarks.shared_arrays

Eight stacked `Linear(512, 512)`, run by `lax.scan` on a batch of 64, with VeRA's matrices of rank
256 shared. Prints the temporary memory that XLA plans for the compiled gradient.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

import jno.lora
from jno.lora._shared_arrays import filler
from jno.lora.extending import map_adapters

LAYERS, SIZE, RANK, BATCH = 8, 512, 256, 64


def copied(model: Any) -> Any:
    """`model` with a copy of each shared array as a leaf of each layer."""
    fill = filler(model)
    return map_adapters(lambda path, adapter: fill(adapter), model)


def run(layers: Any, x: Any) -> Any:
    """The layers, one after the other."""
    arrays, static = eqx.partition(layers, eqx.is_array)

    def body(x: Any, slices: Any) -> Any:
        return jnp.tanh(eqx.combine(slices, static)(x)), None

    return jax.lax.scan(body, x, arrays)[0]


def main() -> None:
    """Compile both programs, and print the table."""
    keys = jax.random.split(jax.random.key(0), LAYERS)
    stack = eqx.filter_vmap(lambda key: eqx.nn.Linear(SIZE, SIZE, key=key))(keys)
    model = jno.lora.apply_lora(stack, RANK, key=jax.random.key(1), wrappers="vera-shared")
    batch = jnp.ones((BATCH, SIZE))
    trainable, frozen = eqx.partition(model, jno.lora.lora_trainable_filter(model))
    print("| | temporary memory |\n|---|---|")
    for name, ready in (("`resolve`", jno.lora.resolve), ("copies", copied)):

        def loss(trainable: Any, ready: Any = ready) -> Any:
            whole = ready(eqx.combine(trainable, frozen))
            return jnp.mean(jax.vmap(lambda x: run(whole, x))(batch) ** 2)

        compiled = eqx.filter_jit(eqx.filter_grad(loss)).lower(trainable).compile()
        print(f"| {name} | {compiled.compiled.memory_analysis().temp_size_in_bytes / 1e6:.1f} MB |")


if __name__ == "__main__":
    main()
