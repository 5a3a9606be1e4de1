"""A probe: a layer with unchanged outputs, whose gradients are statistics.

The probe has a zero array `C` for each statistic. A custom rule makes the cotangent of `left(V) C`
equal to `right(V)`, whatever the loss is, so that `jax.grad` with respect to `C` gives
`left(V)^T right(V)`, through `vmap`, `scan`, `jax.checkpoint` and layers that are used several
times. The compiler drops the backward pass if no other gradient needs it.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jno.lora import LoRAWrapper, MatrixAdapter, Statistic, WrapperError
from jno.lora.extending import statistic_key


class Rows(Statistic):
    """The number of input rows of all calls."""

    name = "rows"

    @staticmethod
    def left(V: Array) -> Array:
        return jnp.ones((V.shape[0], 1), V.dtype)

    right = left


class RowsOut(Rows):
    """The number of output rows of all calls."""

    name = "output rows"
    of = "outputs"


class Probe(LoRAWrapper):
    """`base`, with an array for each statistic in `measured`, whose gradient is the sum."""

    adapter_fields = ("sums",)

    base: Any
    sums: dict[str, Float[Array, "..."]]
    measured: tuple[type[Statistic], ...] = eqx.field(static=True)
    # The adapter class that the layer will get. It finds the rows of a call.
    wrapper: type[MatrixAdapter] = eqx.field(static=True)

    @classmethod
    def applies_to(cls, leaf: Any) -> bool:
        return False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        y = self.base(*args, **kwargs)
        if not args:
            raise WrapperError(
                f"a {type(self.base).__name__} is called by keyword, but its inputs are looked for "
                "in the first argument. Call it by position"
            )
        rows: dict[str, Any] = {}
        sources = {statistic.of for statistic in self.measured}
        if "inputs" in sources:
            rows["inputs"] = self.wrapper.inputs_of(self.base, *args, **kwargs)
        if "outputs" in sources:
            rows["outputs"] = self.wrapper.outputs_of(self.base, y)
        rows = jax.lax.stop_gradient(rows)
        for statistic in self.measured:
            sums = self.sums[statistic_key(statistic)]
            V = rows[statistic.of].astype(sums.dtype)
            left, right = statistic.left(V), statistic.right(V)
            if right.shape[1] > (size := sums.shape[1]):
                sketch = directions(right.shape[1], size, right.dtype)
                right = jnp.matmul(right, sketch, precision="highest")
            # The zeros depend on the rows, because `vmap` would count a factor that is the same for
            # all examples only once, and `shard_map` would raise an error.
            zero = 0 * V[:, :1]
            left, right = left + zero, right + zero
            product = jnp.matmul(left, sums, precision="highest")
            arrays, static = eqx.partition(y, eqx.is_inexact_array)
            y = eqx.combine(_with_cotangent(arrays, product, right), static)
        return y

    def merge(self) -> Any:
        return self.base


def directions(width: int, size: int, dtype: Any) -> Float[Array, "width size"]:
    """The random vectors of a sketch of a covariance of this `width`."""
    return jax.random.normal(jax.random.key(0), (width, size), jnp.float32).astype(dtype)


@jax.custom_vjp
def _with_cotangent(y: Any, product: Array, right: Array) -> Any:
    """`y`. The cotangent of `product` is `right`."""
    return y


_with_cotangent.defvjp(
    lambda y, product, right: (y, right),
    lambda right, cotangent: (cotangent, right, jnp.zeros_like(right)),
)
