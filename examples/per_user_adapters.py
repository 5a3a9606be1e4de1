"""One model, many users, one batch: each scan is read with the adapter of its sender.

A classifier of handwritten digits is trained once. Eight users hold the page at different angles,
and each gets an adapter. All adapters train at the same time, and one call answers a batch of scans
from all users.

    pip install "jno-lora[zoo]" optax scikit-learn
    python examples/per_user_adapters.py

It takes half a minute on two cores, seconds with `--quick`.
"""

import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy.ndimage import rotate
from sklearn.datasets import load_digits

from jno.lora import Net, extract_adapters, lora_report, swap_adapters
from jno_lora_combine import stack_adapters, take_adapters

USERS = 8


def scans(seed=0):
    """Images and labels: upright for pretraining, then of all users, to train and to test."""
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(labels))
    images, labels = images[order].reshape(-1, 8, 8).astype(np.float32) / 16, labels[order]
    upright = images[:797].reshape(-1, 64), labels[:797]
    user_images = images[797:].reshape(USERS, 125, 8, 8)
    user_labels = labels[797:].reshape(USERS, 125)
    angles = np.linspace(-70, 70, USERS)
    rotated = np.stack(
        [
            rotate(scans, angle, axes=(2, 1), reshape=False, order=1).reshape(-1, 64)
            for scans, angle in zip(user_images, angles, strict=True)
        ]
    )
    training = rotated[:, :60], user_labels[:, :60]
    return upright, training, (rotated[:, 60:], user_labels[:, 60:])


def loss_of(model, images, labels):
    """The mean cross-entropy of one model."""
    logits = jax.vmap(model)(images)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def fit(trainable, loss, steps, rate):
    """Minimise `loss(trainable)` by Adam."""
    optimiser = optax.adam(rate)

    @eqx.filter_jit
    def step(trainable, state):
        updates, state = optimiser.update(eqx.filter_grad(loss)(trainable), state)
        return eqx.apply_updates(trainable, updates), state

    state = optimiser.init(trainable)
    for _ in range(steps):
        trainable, state = step(trainable, state)
    return trainable


def accuracy(logits, labels):
    """The accuracy of each user."""
    return np.mean(np.asarray(logits).argmax(-1) == labels, axis=-1)


def main(arguments=()):
    """Run the example; returns the accuracies of the users before and after."""
    steps = 5 if "--quick" in arguments else 200
    (images, labels), (user_images, user_labels), (new, truth) = scans()
    model = eqx.nn.MLP(64, 10, 128, 2, key=jax.random.key(0))
    arrays, static = eqx.partition(model, eqx.is_inexact_array)
    arrays = fit(arrays, lambda a: loss_of(eqx.combine(a, static), images, labels), steps, 3e-3)
    model = eqx.combine(arrays, static)

    # One adapter for each user, along the first axis of every array of the set.
    nets = [Net(model, key=jax.random.key(user)).freeze().lora(4, 8) for user in range(USERS)]
    adapters = stack_adapters([extract_adapters(net.module) for net in nets])

    def loss_of_all(adapters):
        def of_user(adapters, images, labels):
            return loss_of(swap_adapters(model, adapters), images, labels)

        return jnp.sum(jax.vmap(of_user)(adapters, user_images, user_labels))

    adapters = fit(adapters, loss_of_all, steps, 3e-3)

    # A batch has users in any order. The base is neither copied nor batched.
    @eqx.filter_jit
    def serve(adapters, users, images):
        def read(user, image):
            return swap_adapters(model, take_adapters(adapters, user))(image)

        return jax.vmap(read)(users, images)

    users = np.repeat(np.arange(USERS), new.shape[1])
    shuffled = np.random.default_rng(1).permutation(users.size)
    logits = np.zeros((users.size, 10), np.float32)
    logits[shuffled] = serve(adapters, users[shuffled], new.reshape(-1, 64)[shuffled])

    before = accuracy(jax.vmap(jax.vmap(model))(new), truth)
    after = accuracy(logits.reshape(*truth.shape, 10), truth)
    size = lora_report(nets[0].module).trainable
    fraction = size / sum(array.size for array in jax.tree.leaves(arrays))
    print(f"{USERS} adapters of {size:,} parameters, each {fraction:.0%} of the model")
    print("user       " + "".join(f"{user:7}" for user in range(USERS)))
    print("the model  " + "".join(f"{value:7.0%}" for value in before))
    print("adapted    " + "".join(f"{value:7.0%}" for value in after))
    return before, after


if __name__ == "__main__":
    main(sys.argv[1:])
