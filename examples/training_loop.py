"""The whole training loop, to copy: it can be killed at any time, and goes on with the same losses.

It has gradient accumulation, a learning rate with warm-up, evaluation, early stopping, the best
adapters, and the whole state of the run in one file.

    pip install "jno-lora[zoo,train]"
    python examples/training_loop.py FOLDER

Kill it and run it again: it goes on at the step in the file. It takes some seconds.
"""

import pathlib
import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jno.lora import Net
from jno_lora_train import Trainer

STEPS, BATCH, ACCUMULATED = 200, 16, 2  # two batches for each update
EVALUATE_EVERY, PATIENCE = 20, 5


def data(seed, count):
    """Points, and the values of a function that the pretrained model does not know."""
    x = np.random.default_rng(seed).uniform(-2, 2, (count, 4)).astype(np.float32)
    return x, np.sin(2 * x[:, :2]) * x[:, 2:]


def batch_at(step, x, y):
    """The batch of a step. The number of the epoch decides the order of its batches."""
    epoch, position = divmod(step, len(x) // BATCH)
    order = np.random.default_rng(epoch).permutation(len(x))
    rows = order[position * BATCH : (position + 1) * BATCH]
    return x[rows], y[rows]


def loss(model, batch):
    """The mean square error."""
    x, y = batch
    return jnp.mean((jax.vmap(model)(x) - y) ** 2)


def main(folder):
    """Train, or go on. Returns the net with its best adapters."""
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    model = eqx.nn.MLP(4, 2, 32, 2, key=jax.random.key(0))  # your pretrained model
    net = Net(model).freeze().lora(rank=2, alpha=4)
    trainable, frozen = net.partition()

    rate = optax.warmup_cosine_decay_schedule(0, 1e-2, 10, STEPS // ACCUMULATED)
    optimiser = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(rate, weight_decay=0.01))
    trainer = Trainer(loss, optax.MultiSteps(optimiser, ACCUMULATED))

    run, file = trainer.start(trainable), folder / "run"
    if file.exists():
        run = run.load(file)
        print(f"resuming at step {run.step}")
    points, held_out = data(0, 256), data(1, 256)
    while run.step < STEPS and run.waited < PATIENCE:
        step = run.step
        run, value = trainer.step(run, frozen, batch_at(step, *points))
        print(f"step {step}: {float(value).hex()}", flush=True)  # exact, bit for bit
        if run.step % EVALUATE_EVERY == 0:
            model = eqx.combine(run.trainable, frozen)
            run = run.evaluated(trainer.evaluate(model, [held_out]))
            run.save(file)

    net.update(run.best).save_adapters(folder / "adapters.safetensors")
    print(f"{run.step} steps; the best loss on points held out: {run.best_loss:.4f}")
    return net


if __name__ == "__main__":
    main(sys.argv[1])
