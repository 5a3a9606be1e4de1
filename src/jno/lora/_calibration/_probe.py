"""A probe: a layer that computes what it did, and whose gradients are statistics.

The probe holds a zero array `C` for each statistic, and adds nothing to the output. A rule of its
own makes the cotangent of `left(V) C` equal to `right(V)`, whatever the loss is. So `jax.grad`
with respect to `C` gives `left(V)^T right(V)`, as one matrix product for a whole batch, through
`vmap`, `scan`, `jax.checkpoint` and layers that are used several times. The rule does not look at
the output's own cotangent: the compiler drops the backward pass unless a gradient is asked for.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._contract import LoRAWrapper, Statistic
from .._errors import WrapperError


class Rows(Statistic):
    """The number of rows: of the inputs that all calls saw."""

    name = "rows"

    @staticmethod
    def left(V: Array) -> Array:
        return jnp.ones((V.shape[0], 1), V.dtype)

    right = left


class RowsOut(Rows):
    """The number of rows of all outputs."""

    name = "output rows"
    of = "outputs"


class Probe(LoRAWrapper):
    """`base`, with an array for each of `measured` whose gradient is its sum."""

    adapter_fields = ("sums",)

    base: Any
    sums: dict[str, Float[Array, "..."]]
    measured: tuple[type[Statistic], ...] = eqx.field(static=True)
    # The adapter class to come: it says what the rows of a call are.
    wrapper: type[LoRAWrapper] = eqx.field(static=True)
    sketch: int | None = eqx.field(static=True)

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
        seen = {
            "inputs": lambda: self.wrapper.inputs_of(self.base, *args, **kwargs),
            "outputs": lambda: self.wrapper.outputs_of(self.base, y),
        }
        rows: dict[str, Any] = {}
        for statistic in self.measured:
            if statistic.of not in rows:
                rows[statistic.of] = jax.lax.stop_gradient(seen[statistic.of]())
            V = rows[statistic.of].astype(self.sums[statistic.name].dtype)
            # Zeros that depend on the rows: a factor that is the same for all examples would be
            # counted once under `vmap`, and refused under `shard_map`.
            left = statistic.left(V) + 0 * V[:, :1]
            right = sketched(statistic, V, self.sketch) + 0 * V[:, :1]
            product = jnp.matmul(left, self.sums[statistic.name], precision="highest")
            arrays, rest = eqx.partition(y, eqx.is_inexact_array)
            y = eqx.combine(_with_cotangent(arrays, product, right), rest)
        return y

    def merge(self) -> Any:
        return self.base


def sketched(statistic: type[Statistic], V: Array, size: int | None) -> Array:
    """`right(V)`, or its products with `size` random vectors if it has more columns."""
    right = statistic.right(V)
    if not statistic.is_covariance or size is None or right.shape[1] <= size:
        return right
    return jnp.matmul(right, directions(right.shape[1], size, right.dtype), precision="highest")


def directions(width: int, size: int, dtype: Any) -> Float[Array, "width size"]:
    """The random vectors of a sketch."""
    return jax.random.normal(jax.random.key(0), (width, size), jnp.float32).astype(dtype)


@jax.custom_vjp
def _with_cotangent(y: Any, product: Array, right: Array) -> Any:
    """`y`. The cotangent of `product` is `right`."""
    return y


def _forward(y: Any, product: Array, right: Array) -> tuple[Any, Array]:
    return y, right


def _backward(right: Array, cotangent: Any) -> tuple[Any, Array, Array]:
    return cotangent, right, jnp.zeros_like(right)


_with_cotangent.defvjp(_forward, _backward)
