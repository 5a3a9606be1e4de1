"""Adapters that break a symmetry of their layer: by a wrong matrix, or in the call."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from jno.lora import WrapperError
from jno.lora.testing import cyclic_shift, invariant, permutation, rotation

from ._bases import AttentionLoRA, ConvLoRA, LoRA
from ._rows import wrong

SIZE = 6


def linear(matrix):
    """A function that makes a linear layer with this matrix, and a function that makes inputs."""
    outputs, inputs = matrix.shape

    def base(key):
        layer = eqx.nn.Linear(inputs, outputs, use_bias=False, key=key)
        return eqx.tree_at(lambda layer: layer.weight, layer, jnp.asarray(matrix, jnp.float32))

    return {"base": base, "inputs": normal(inputs), "parameters": None}


def normal(*shape):
    return lambda key: (jax.random.normal(key, shape),)


VECTORS = linear(np.kron([[1.0, 2.0], [-0.5, 0.3]], np.eye(3)))
SCALARS = linear(np.array([[1.0, 0.5, 0.0], [0.0, 0.0, -1.0]]))
CIRCULANT = linear(np.stack([np.roll(np.linspace(-1, 1, SIZE) ** 2, i) for i in range(SIZE)]))
DEEP_SET = linear(2 * np.eye(SIZE) - 0.3 * np.ones((SIZE, SIZE)))
SUMS = linear(np.array([[1.0], [-2.0]]) * np.ones((2, SIZE)))
PERIODIC = {
    "base": lambda key: eqx.nn.Conv1d(2, 3, 3, padding=1, padding_mode="CIRCULAR", key=key),
    "inputs": normal(2, SIZE),
    "parameters": None,
}


@wrong("symmetries", symmetries=(rotation("2x1o", "2x1o"),), **VECTORS)
class MixesTheComponentsOfVectors(LoRA):
    """A low-rank product acts on vectors as on six numbers, which breaks rotations."""


@wrong("symmetries", symmetries=(rotation("2x0e + 0o", "0e + 0o"),), **SCALARS)
class MixesScalarsWithPseudoscalars(LoRA):
    """The update adds a pseudoscalar to a scalar, which only an inversion of space shows."""


@wrong("symmetries", symmetries=(cyclic_shift(0),), **CIRCULANT)
class UpdatesACirculantMatrix(LoRA):
    """A low-rank product is added to a circulant matrix, which breaks shifts."""


@wrong("symmetries", symmetries=(cyclic_shift(-1),), **PERIODIC)
class HasAGainForEachPoint(ConvLoRA):
    adapter_fields = ("lora_A", "lora_B", "gain")
    mergeable = False
    gain: jax.Array

    def __init__(self, base, rank, alpha, *, key):
        super().__init__(base, rank, alpha, key=key)
        self.gain = jnp.ones(SIZE, self.lora_A.dtype)

    def added(self, x):
        y = super().added(x)
        return y * jnp.broadcast_to(self.gain.astype(x.dtype), y.shape)

    def merge(self):
        raise WrapperError("a gain for each point is not a kernel")


@wrong("symmetries", symmetries=(permutation(SIZE),), **DEEP_SET)
class UpdatesALayerOfSets(LoRA):
    """A low-rank product tells the entries of a set apart."""


@wrong("symmetries", symmetries=(permutation(5),))
class TokensHavePositions(AttentionLoRA):
    adapter_fields = ("lora_A", "lora_B", "offsets")
    mergeable = False
    offsets: jax.Array

    def __init__(self, base, rank, alpha, *, key):
        super().__init__(base, rank, alpha, key=key)
        self.offsets = jnp.zeros(5, self.lora_A.dtype)

    def __call__(self, *inputs, **options):
        y = super().__call__(*inputs, **options)
        return y + jnp.broadcast_to(self.offsets.astype(y.dtype)[:, None], y.shape)

    def merge(self):
        raise WrapperError("a number for each position is not a weight")


@wrong("symmetries", symmetries=(invariant(permutation(SIZE)),), **SUMS)
class WeighsTheTermsOfASum(LoRA):
    """A low-rank product weighs the entries whose sum the layer takes."""
