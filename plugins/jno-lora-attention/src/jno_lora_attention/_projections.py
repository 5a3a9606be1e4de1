"""Stand-ins for a projection while the attention layer runs. They are part of no model."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from jno_lora_zoo import dtype_of, scaled


class LowRankProjection(eqx.Module):
    """`linear(x) + s B A x`."""

    linear: eqx.nn.Linear
    A: Float[Array, "r in"]
    B: Float[Array, "out r"]
    scaling: float

    def __call__(self, x: Shaped[Array, " in"], *, key: Any = None) -> Float[Array, " out"]:
        """Project one vector."""
        # As the product with the weight does it: integers would cut the adapter's arrays.
        x = x.astype(jnp.result_type(x.dtype, dtype_of(self.linear.weight)))
        # `x @ A.T`, not `A @ x`: under the layer's `vmap` this is one plain matrix product.
        h = x @ self.A.T.astype(x.dtype)
        return self.linear(x) + self.scaling * (h @ self.B.T.astype(x.dtype))


class ScaledProjection(eqx.Module):
    """`scale * linear(x)`, the bias included."""

    linear: eqx.nn.Linear
    scale: Float[Array, " out"]

    def __call__(self, x: Shaped[Array, " in"], *, key: Any = None) -> Float[Array, " out"]:
        """Project one vector."""
        return scaled(self.linear(x), self.scale)
