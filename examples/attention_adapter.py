"""A transformer reads digits row by row, and its attention layers are adapted as units.

It learns upright scans. Then the page is turned on its side, and only 200 turned scans have labels.
Adapters of `jno-lora-attention` adapt a whole `eqx.nn.MultiheadAttention`: low-rank updates of the
projections that you name, factors on keys and values, or trained prefixes for every query.

    pip install "jno-lora[zoo]" jno-lora-attention optax scikit-learn
    python examples/attention_adapter.py

It takes a minute on two cores, seconds with `--quick`.
"""

import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

from jno.lora import Net

# The adapters of each attention layer; the head trains as well.
CANDIDATES = {
    "head alone": None,
    "lora, queries and values": {"wrapper": "lora-attention"},
    "lora, all projections": {"wrapper": "lora-attention", "options": {"projections": "qkvo"}},
    "ia3": {"wrapper": "IA3Attention"},
    "prefixes": {"wrapper": "PrefixAttention"},
}


class Block(eqx.Module):
    """Attention and an MLP, each with a norm before it."""

    attention: eqx.nn.MultiheadAttention
    mlp: eqx.nn.MLP
    norms: list[eqx.nn.LayerNorm]

    def __init__(self, size, key):
        k1, k2 = jax.random.split(key)
        self.attention = eqx.nn.MultiheadAttention(4, size, key=k1)
        self.mlp = eqx.nn.MLP(size, size, 2 * size, 1, key=k2)
        self.norms = [eqx.nn.LayerNorm(size), eqx.nn.LayerNorm(size)]

    def __call__(self, x):
        """Map rows to rows."""
        h = jax.vmap(self.norms[0])(x)
        x = x + self.attention(h, h, h)
        return x + jax.vmap(self.mlp)(jax.vmap(self.norms[1])(x))


class Reader(eqx.Module):
    """A network from eight rows of eight pixels to ten logits."""

    embed: eqx.nn.Linear
    places: jax.Array
    blocks: list[Block]
    head: eqx.nn.Linear

    def __init__(self, key, size=32):
        k1, k2, k3, *blocks = jax.random.split(key, 5)
        self.embed = eqx.nn.Linear(8, size, key=k1)
        self.places = jax.random.normal(k2, (8, size))
        self.blocks = [Block(size, block) for block in blocks]
        self.head = eqx.nn.Linear(size, 10, key=k3)

    def __call__(self, image):
        """Map a scan to its logits."""
        x = jax.vmap(self.embed)(image) + self.places
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean(axis=0))


def fit(net, images, labels, steps, rate):
    """Train the trainable part of `net`, on all scans at once."""
    trainable, frozen = net.partition()
    optimiser = optax.adam(rate)

    @eqx.filter_jit
    def step(trainable, state, frozen):
        def loss(trainable):
            logits = jax.vmap(eqx.combine(trainable, frozen))(images)
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

        updates, state = optimiser.update(eqx.filter_grad(loss)(trainable), state)
        return eqx.apply_updates(trainable, updates), state

    state = optimiser.init(trainable)
    for _ in range(steps):
        trainable, state = step(trainable, state, frozen)
    return net.update(trainable)


def main(arguments=()):
    """Run the example; returns the accuracy of every candidate."""
    steps = 3 if "--quick" in arguments else 200
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    images, labels = (images[order].reshape(-1, 8, 8) / 16).astype(np.float32), labels[order]
    model = fit(Net(Reader(jax.random.key(0))), images[:1000], labels[:1000], steps, 3e-3).module

    turned = np.rot90(images, axes=(1, 2)).copy()
    few, test = slice(1000, 1200), slice(1200, None)

    def accuracy(model, images):
        logits = jax.vmap(model)(jnp.asarray(images[test]))
        return float(np.mean(np.asarray(logits).argmax(-1) == labels[test]))

    print(f"upright {accuracy(model, images):.1%}, on its side {accuracy(model, turned):.1%}\n")
    accuracies = {}
    for name, call in CANDIDATES.items():
        net = Net(model, key=jax.random.key(1)).freeze()
        if call is not None:
            net.lora(rank=4, alpha=8, **call)
        net.mask("^head/").unfreeze()
        number = sum(leaf.size for leaf in jax.tree.leaves(net.partition()[0]))
        fit(net, turned[few], labels[few], steps, 1e-2)
        accuracies[name] = accuracy(net.module, turned)
        print(f"{name:26}{number:>7,} parameters {accuracies[name]:>8.1%}")
    return accuracies


if __name__ == "__main__":
    main(sys.argv[1:])
