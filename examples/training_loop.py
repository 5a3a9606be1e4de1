"""The whole training loop, to copy: it can be killed at any time, and goes on with the same losses.

Gradient accumulation, a learning rate with warm-up, evaluation, early stopping, the best adapters
kept, and the whole state of the run in one file.

    pip install "jno-lora[zoo]" optax
    python examples/training_loop.py FOLDER

Kill it and run it again: it goes on where the file says. It takes some seconds.
"""

import os
import pathlib
import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, PyTree

from jno.lora import Net

STEPS, BATCH, ACCUMULATED = 200, 16, 2  # two batches for each update
EVALUATE_EVERY, PATIENCE = 20, 5


class Run(eqx.Module):
    """Everything that a run needs to go on. The number of the step says which data come next."""

    trainable: PyTree
    optimiser: PyTree
    step: Int[Array, ""]
    best: PyTree
    best_loss: Float[Array, ""]
    evaluations_since: Int[Array, ""]


def data(seed, count):
    """Points, and the values of a function that the pretrained model does not know."""
    x = np.random.default_rng(seed).uniform(-2, 2, (count, 4)).astype(np.float32)
    return x, np.sin(2 * x[:, :2]) * x[:, 2:]


def batch_at(step, x, y):
    """The batch of a step: each epoch has an order of its own, which its number gives."""
    epoch, position = divmod(step, len(x) // BATCH)
    order = np.random.default_rng(epoch).permutation(len(x))
    chosen = order[position * BATCH : (position + 1) * BATCH]
    return x[chosen], y[chosen]


def save(run, file):
    """Write the run, so that there is the old file or the new one, whatever happens meanwhile."""
    new = file.with_suffix(".new")
    with open(new, "wb") as opened:
        eqx.tree_serialise_leaves(opened, run)
        opened.flush()
        os.fsync(opened.fileno())
    os.replace(new, file)


def main(folder):
    """Train, or go on. Returns the net with its best adapters."""
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    model = eqx.nn.MLP(4, 2, 32, 2, key=jax.random.key(0))  # your pretrained model
    net = Net(model).freeze().lora(rank=2, alpha=4)
    trainable, frozen = net.partition()

    rate = optax.warmup_cosine_decay_schedule(0, 1e-2, 10, STEPS // ACCUMULATED)
    optimiser = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(rate, weight_decay=0.01))
    optimiser = optax.MultiSteps(optimiser, every_k_schedule=ACCUMULATED)

    def loss(trainable, frozen, x, y):
        return jnp.mean((jax.vmap(eqx.combine(trainable, frozen))(x) - y) ** 2)

    @eqx.filter_jit
    def train(run, frozen, x, y):
        value, grads = eqx.filter_value_and_grad(loss)(run.trainable, frozen, x, y)
        updates, state = optimiser.update(grads, run.optimiser, run.trainable)
        new = (eqx.apply_updates(run.trainable, updates), state, run.step + 1)
        return eqx.tree_at(lambda r: (r.trainable, r.optimiser, r.step), run, new), value

    @eqx.filter_jit
    def evaluate(run, frozen, x, y):
        value = loss(run.trainable, frozen, x, y)

        def keep(new, old):
            return jnp.where(value < run.best_loss, new, old)

        best = jax.tree.map(keep, run.trainable, run.best)
        since = keep(0, run.evaluations_since + 1)
        new = (best, keep(value, run.best_loss), since)
        return eqx.tree_at(lambda r: (r.best, r.best_loss, r.evaluations_since), run, new)

    start = (jnp.array(0), trainable, jnp.array(jnp.inf), jnp.array(0))
    run, file = Run(trainable, optimiser.init(trainable), *start), folder / "run.eqx"
    if file.exists():
        run = eqx.tree_deserialise_leaves(file, run)
        print(f"going on at step {run.step}")

    points, held_out = data(0, 256), data(1, 256)
    while run.step < STEPS and run.evaluations_since < PATIENCE:
        step = int(run.step)
        run, value = train(run, frozen, *batch_at(step, *points))
        print(f"step {step}: {float(value).hex()}", flush=True)  # every bit of it
        if int(run.step) % EVALUATE_EVERY == 0:
            run = evaluate(run, frozen, *held_out)
            save(run, file)

    net.update(run.best).save_adapters(folder / "adapters.safetensors")
    print(f"{run.step} steps; the best loss of points held out: {run.best_loss:.4f}")
    return net


if __name__ == "__main__":
    main(sys.argv[1])
