"""The demo's model: a small classifier with convolutions and linear layers."""

import equinox as eqx
import jax
from jaxtyping import Array, Float, PRNGKeyArray


class Classifier(eqx.Module):
    """Two convolutions, a pooling between them, two linear layers: 85,066 parameters."""

    edges: eqx.nn.Conv2d
    shapes: eqx.nn.Conv2d
    pool: eqx.nn.MaxPool2d
    hidden: eqx.nn.Linear
    output: eqx.nn.Linear

    def __init__(self, key: PRNGKeyArray):
        keys = jax.random.split(key, 4)
        self.edges = eqx.nn.Conv2d(1, 32, kernel_size=3, padding=1, key=keys[0])
        self.shapes = eqx.nn.Conv2d(32, 64, kernel_size=3, padding=1, key=keys[1])
        self.pool = eqx.nn.MaxPool2d(kernel_size=2, stride=2)
        self.hidden = eqx.nn.Linear(64 * 4 * 4, 64, key=keys[2])
        self.output = eqx.nn.Linear(64, 10, key=keys[3])

    def __call__(self, image: Float[Array, "1 8 8"]) -> Float[Array, "10"]:
        """The logits of the ten digits, for one scan."""
        # Pooled before the larger convolution, which would else take most of the time.
        edges = self.pool(jax.nn.relu(self.edges(image)))
        shapes = jax.nn.relu(self.shapes(edges))
        return self.output(jax.nn.relu(self.hidden(shapes.reshape(-1))))
