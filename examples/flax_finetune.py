"""A Flax model, pretrained here on upright digits, learns turned digits by adapters.

The model is a vision transformer of Flax Linen. Its parameters are a dict of arrays. `infer` finds
the roles of their axes, and `declare` makes layers of them for every adapter of the zoo.

    pip install "jno-lora[arrays,zoo]" flax optax scikit-learn
    python examples/flax_finetune.py

It needs no network, and takes a minute on two cores, seconds with `--quick`.
"""

import pathlib
import sys
import tempfile

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

from jno.lora import Net
from jno_lora_arrays import declare, infer, plain, report_uses, through

BATCH = 128


class Block(nn.Module):
    """A block of a transformer."""

    @nn.compact
    def __call__(self, x):
        """The outputs for `(batch, tokens, 32)`."""
        x = x + nn.MultiHeadDotProductAttention(num_heads=4)(nn.LayerNorm()(x))
        return x + nn.Dense(32)(nn.gelu(nn.Dense(64)(nn.LayerNorm()(x))))


class Digits(nn.Module):
    """Patches of 2 x 2 pixels, two blocks, and a head on their mean."""

    @nn.compact
    def __call__(self, images):
        """The logits for images `(batch, 8, 8)`."""
        x = nn.Conv(32, (2, 2), strides=(2, 2))(images[..., None])
        x = x.reshape(len(images), 16, 32)
        x = x + self.param("positions", nn.initializers.normal(0.1), (1, 16, 32))
        x = Block()(Block()(x))
        return nn.Dense(10)(nn.LayerNorm()(x).mean(axis=1))


def data(is_turned):
    """Images and labels, for training and for testing."""
    images, labels = load_digits(return_X_y=True)
    images = (images / 16).reshape(-1, 8, 8).astype(np.float32)
    images = np.rot90(images, axes=(1, 2)) if is_turned else images
    half = len(images) // 2
    return (images[:half], labels[:half]), (images[half:], labels[half:])


def train(loss, trainable, examples, steps, rate):
    """Adam on random batches."""
    optimiser = optax.adam(rate)

    @jax.jit
    def step(trainable, state, images, labels):
        gradient = jax.grad(loss)(trainable, images, labels)
        updates, state = optimiser.update(gradient, state)
        return optax.apply_updates(trainable, updates), state

    state, rng = optimiser.init(trainable), np.random.default_rng(0)
    images, labels = examples
    for _ in range(steps):
        rows = rng.choice(len(images), BATCH)
        trainable, state = step(trainable, state, images[rows], labels[rows])
    return trainable


def cross_entropy(logits, labels):
    """The mean cross-entropy of a batch."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def accuracy(apply, params, examples):
    """The fraction of the examples that the model recognises."""
    return float(jnp.mean(jnp.argmax(apply(params, examples[0]), axis=-1) == examples[1]))


def main(arguments=()):
    """Pretrain, adapt, save, load and merge. Returns the accuracies."""
    steps = 3 if "--quick" in arguments else 300
    model = Digits()
    upright, _ = data(is_turned=False)
    turned, unseen = data(is_turned=True)
    params = model.init(jax.random.key(0), upright[0][:1])
    params = train(
        lambda params, x, y: cross_entropy(model.apply(params, x), y), params, upright, steps, 1e-3
    )

    # adapt
    axes = infer(model.apply, params, turned[0][:1])
    print(axes)
    net = Net(declare(params, axes)).freeze().lora(rank=4, alpha=8)
    trainable, frozen = net.partition()

    def loss(trainable, images, labels):
        params = eqx.combine(trainable, frozen)
        return cross_entropy(through(model.apply)(params, images), labels)

    net.update(train(loss, trainable, turned, steps, 3e-3))
    # /adapt
    print(report_uses(model.apply, net.module, turned[0][:1]))
    print(net)

    # save
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "turned.safetensors"
        net.save_adapters(path)
        loaded = Net(declare(params, axes)).load_adapters(path)
    merged = plain(loaded.module)  # a dict for `model.apply`, as `params` was
    # /save
    accuracies = {
        "pretrained": accuracy(model.apply, params, unseen),
        "adapted": accuracy(through(model.apply), net.module, unseen),
        "merged": accuracy(model.apply, merged, unseen),
    }
    for name, value in accuracies.items():
        print(f"{name}: {value:.1%} of the turned digits")
    return accuracies


if __name__ == "__main__":
    main(sys.argv[1:])
