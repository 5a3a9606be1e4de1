"""Memory of a training step by its kind: arguments, results and temporary memory.

    python -m benchmarks.step_memory [--quick]

A transformer of 12 blocks of width 256, batch 4 x 64, in bfloat16 and float32. XLA places temporary
arrays in the memory of results, so a step with large results (all parameters and their moments)
needs little temporary memory beside its results. Only the sum compares steps. Half of the rows
donate the state of the training, as a training loop does.
"""

import argparse
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

from jno.lora import Net

from .first_call import Transformer
from .reading import half

KINDS = ("all parameters", "LoRA, rank 8", "norms")


def trained(kind: str, model: Any) -> Net:
    """The net whose arrays of this kind train."""
    net = Net(model)
    if kind == "all parameters":
        return net
    return net.freeze().lora(8) if kind == "LoRA, rank 8" else net.freeze().mask("norms").unfreeze()


def memory(net: Net, x: jax.Array, *, donate: bool) -> dict[str, float]:
    """Megabytes of one step of Adam, by what they are for."""
    trainable, frozen = net.partition()
    optimiser = optax.adam(1e-3)
    state = trainable, optimiser.init(trainable)
    arrays, structure = eqx.partition((state, frozen), eqx.is_array)

    def step(state: Any, frozen: Any, x: jax.Array) -> Any:
        (trainable, moments), frozen = eqx.combine((state, frozen), structure)

        def loss(trainable: Any) -> jax.Array:
            outputs = jax.vmap(eqx.combine(trainable, frozen))(x)
            return jnp.mean(outputs.astype(jnp.float32) ** 2)

        value, gradient = jax.value_and_grad(loss)(trainable)
        updates, moments = optimiser.update(gradient, moments, trainable)
        return eqx.filter((eqx.apply_updates(trainable, updates), moments), eqx.is_array), value

    compiled = jax.jit(step, donate_argnums=0 if donate else ()).lower(*arrays, x).compile()
    sizes: Any = compiled.memory_analysis()
    names = {"arguments": "argument", "results": "output", "shared": "alias", "temporary": "temp"}
    parts = {name: getattr(sizes, f"{key}_size_in_bytes") / 1e6 for name, key in names.items()}
    return parts | {"sum": sum(parts.values()) - 2 * parts["shared"]}


def main() -> None:
    """Print a table for each dtype."""
    parser = argparse.ArgumentParser(description="Memory of a training step by its kind.")
    parser.add_argument("--quick", action="store_true", help="small shapes, to check that it runs")
    size, blocks, tokens = (32, 2, 8) if parser.parse_args().quick else (256, 12, 64)
    model = Transformer(blocks, size, 4, jax.random.key(0))
    print("| | | arguments | results | temporary | sum |\n|---|---|---|---|---|---|")
    for donate in (False, True):
        for dtype in ("bfloat16", "float32"):
            cast = half(model) if dtype == "bfloat16" else model
            x = jnp.ones((4, tokens, size), dtype)
            for kind in KINDS:
                parts = memory(trained(kind, cast), x, donate=donate)
                how = f"{dtype}{', donated' if donate else ''}"
                numbers = " | ".join(
                    f"{parts[name]:.1f}" for name in ("arguments", "results", "temporary", "sum")
                )
                print(f"| {kind} | {how} | {numbers} |", flush=True)


if __name__ == "__main__":
    main()
