"""Adapters that break a symmetry of their layer: by a wrong matrix, or in the call."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from jno.lora import WrapperError
from jno_lora_testing import cyclic_shift, invariant, permutation, rotation

from ._bases import AttentionLoRA, ConvLoRA, LoRA
from ._rows import changed, trained

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


def breaking(symmetry, name, base=LoRA, layer=None, **members):
    changed("symmetries", name, base, case={"symmetries": (symmetry,), **(layer or {})}, **members)


# A low-rank product acts on vectors as on six numbers.
breaking(rotation("2x1o", "2x1o"), "MixesTheComponentsOfVectors", layer=VECTORS)
# Only an inversion of space shows this.
breaking(rotation("2x0e + 0o", "0e + 0o"), "MixesScalarsWithPseudoscalars", layer=SCALARS)
breaking(cyclic_shift(0), "UpdatesACirculantMatrix", layer=CIRCULANT)
breaking(permutation(SIZE), "UpdatesALayerOfSets", layer=DEEP_SET)
breaking(invariant(permutation(SIZE)), "WeighsTheTermsOfASum", layer=SUMS)


def refuses(self):
    raise WrapperError("it is not a weight")


breaking(
    cyclic_shift(-1),
    "HasAGainForEachPoint",
    ConvLoRA,
    PERIODIC,
    mergeable=False,
    merge=refuses,
    gain=trained(lambda self, base, key: jnp.ones((1, SIZE), self.lora_A.dtype)),
    added=lambda self, x: ConvLoRA.added(self, x) * self.gain.astype(x.dtype),
)
breaking(
    permutation(5),
    "TokensHavePositions",
    AttentionLoRA,
    mergeable=False,
    merge=refuses,
    offsets=trained(lambda self, base, key: jnp.zeros((5, 1), self.lora_A.dtype)),
    attend=lambda self, layer, *inputs, **options: (
        layer(*inputs, **options) + self.offsets.astype(inputs[0].dtype)
    ),
)
