"""A layer that no plugin knows: a Kolmogorov-Arnold layer of Chebyshev polynomials.

It is here because no package on PyPI with such a layer for Equinox installs on Python 3.11 without
another framework. In a plugin of yours, import the layer of your models instead.
"""

import equinox as eqx
import jax
import jax.numpy as jnp


class ChebyshevKAN(eqx.Module):
    """`y_o = sum_i sum_k C_oik T_k(tanh x_i)`: a trained polynomial on each edge.

    Paper: SS et al., "Chebyshev Polynomial-Based Kolmogorov-Arnold Networks", arXiv:2405.07200.
    """

    coefficients: jax.Array  # (out, in, degree + 1)

    def __init__(self, inputs, outputs, degree, *, key):
        scale = 1 / (inputs * (degree + 1))
        self.coefficients = scale * jax.random.normal(key, (outputs, inputs, degree + 1))

    def basis(self, x):
        """The values `T_k(tanh x_i)`, in one vector."""
        t = jnp.tanh(x)
        values = [jnp.ones_like(t), t]
        while len(values) < self.coefficients.shape[-1]:
            values.append(2 * t * values[-1] - values[-2])
        return jnp.stack(values[: self.coefficients.shape[-1]], axis=-1).reshape(-1)

    def __call__(self, x):
        return self.coefficients.reshape(len(self.coefficients), -1) @ self.basis(x)
