"""A small force field of e3nn's layers, and the layers of the tests."""

from typing import Any

import e3nn_jax as e3nn
import equinox as eqx
import jax
import jax.numpy as jnp

HIDDEN = "4x0e + 3x1o"
SPECIES = 2


class RadialLinear(eqx.Module):
    """As `nequix.model.Linear`, whose package needs libraries that the tests do without."""

    weights: jax.Array
    bias: jax.Array | None
    use_bias: bool = eqx.field(static=True)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = jnp.dot(x, self.weights)
        return x + self.bias if self.bias is not None else x


RadialLinear.__module__, RadialLinear.__name__ = "nequix.model", "Linear"


def radial(inputs: int, outputs: int, key: Any, *, use_bias: bool = True) -> RadialLinear:
    keys = jax.random.split(key)
    bias = jax.random.normal(keys[0], (outputs,)) if use_bias else None
    return RadialLinear(jax.random.normal(keys[1], (inputs, outputs)), bias, use_bias)


class ForceField(eqx.Module):
    """One interaction block as in NequIP: `energy(species, positions)`."""

    embed: Any
    first: Any
    radial: Any
    second: Any
    skip: Any
    readout: Any

    def __init__(self, key: Any):
        keys = jax.random.split(key, 6)
        linear = e3nn.equinox.Linear
        irreps = e3nn.Irreps(HIDDEN)
        messages = e3nn.tensor_product(irreps, e3nn.Irreps("0e + 1o + 2e"), filter_ir_out=irreps)
        types = {"linear_type": "indexed", "num_indexed_weights": SPECIES}
        self.embed = linear(irreps_in=f"{SPECIES}x0e", irreps_out="4x0e", key=keys[0])
        self.first = linear(irreps_in="4x0e", irreps_out=HIDDEN, force_irreps_out=True, key=keys[1])
        self.radial = radial(3, messages.num_irreps, keys[2], use_bias=False)
        self.second = linear(irreps_in=messages, irreps_out=HIDDEN, key=keys[3])
        self.skip = linear(irreps_in=HIDDEN, irreps_out=HIDDEN, key=keys[4], **types)
        self.readout = linear(irreps_in=HIDDEN, irreps_out="0e", biases=True, key=keys[5])

    def __call__(self, species: jax.Array, positions: jax.Array) -> jax.Array:
        """The energy of atoms that all see each other."""
        n = len(species)
        senders, receivers = jnp.nonzero(~jnp.eye(n, dtype=bool), size=n * (n - 1))
        vectors = positions[receivers] - positions[senders]
        lengths = jnp.linalg.norm(vectors, axis=1)
        # In the dtype of the positions, which `one_hot` does not know.
        one_hot = jax.nn.one_hot(species, SPECIES, dtype=positions.dtype)
        x = self.first(self.embed(e3nn.IrrepsArray(f"{SPECIES}x0e", one_hot)))
        basis = jnp.stack([jnp.sin(k * lengths) / lengths for k in range(1, 4)], axis=1)
        sh = e3nn.spherical_harmonics([0, 1, 2], e3nn.IrrepsArray("1o", vectors), normalize=True)
        tensors = e3nn.tensor_product(x[senders], sh, filter_ir_out=e3nn.Irreps(HIDDEN))
        messages = tensors * jax.vmap(self.radial)(basis)
        x = self.second(e3nn.scatter_sum(messages, dst=receivers, output_size=n))
        x = e3nn.scalar_activation(x, [jnp.tanh, None]) + self.skip(species, x)
        # The scalars see the norms of the vectors.
        squares = jnp.sum(self.skip(species, x).array ** 2)
        return jnp.sum(self.readout(x).array) + squares
