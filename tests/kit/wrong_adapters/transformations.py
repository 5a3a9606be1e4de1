"""Adapters that fail, or differ, under a transformation of JAX."""

import equinox as eqx
import jax
import jax.numpy as jnp
from tests.core.good_adapter import float_of

from ._bases import LoRA, Magnitude
from ._rows import wrong


@wrong("input-jet")
class NeedsABatch(LoRA):
    """The call takes every input for a batch, and gives an output with a batch axis."""

    def __call__(self, x):
        rows = x.reshape(-1, self.base.in_features)
        return jax.vmap(lambda row: self.base(row) + self.added(row))(rows)


@wrong("input-derivatives")
class FlattensBatches(LoRA):
    """Normalises by all numbers that `custom_vmap` shows, so that a batch differs from a loop."""

    def added(self, x):
        return super().added(x) / size_of_batch(x).astype(x.dtype)


@jax.custom_batching.custom_vmap
def size_of_batch(x):
    return jnp.ones(())


@size_of_batch.def_vmap
def _size_of_batch_rule(axis_size, in_batched, x):
    return jnp.full(axis_size, float(axis_size)), True


@wrong("no-lapack-in-step")
class DecomposesInTheCall(LoRA):
    """The call computes a QR decomposition."""

    def added(self, x):
        A = self.lora_A.astype(jnp.float32).T
        Q, R = jnp.linalg.qr(A)
        return super().added(x) + 0 * jnp.sum(Q @ R - A).astype(x.dtype)


@wrong("input-derivatives")
class LoopsWithoutEnd(LoRA):
    """The call uses a `while_loop`, which has no reverse mode."""

    def added(self, x):
        A, B = self.lora_A.astype(x.dtype), self.lora_B.astype(x.dtype)

        def step(state):
            count, product = state
            return count + 1, product + A @ x

        start = (0, jnp.zeros(len(A), x.dtype))
        _, product = jax.lax.while_loop(lambda state: state[0] < 1, step, start)
        return self.scale() * (B @ product)


@jax.custom_vjp
def product(matrix, x):
    return matrix @ x


product.defvjp(
    lambda matrix, x: (matrix @ x, (matrix, x)),
    lambda kept, dy: (jnp.outer(dy, kept[1]), kept[0].T @ dy),
)


@wrong("input-derivatives")
class HasReverseModeAlone(LoRA):
    """The call has a `custom_vjp`, so it has no forward mode."""

    def added(self, x):
        A, B = self.lora_A.astype(x.dtype), self.lora_B.astype(x.dtype)
        return self.scale() * (B @ product(A, x))


@jax.custom_vjp
def transposed_rule(matrix, x):
    return matrix @ x


transposed_rule.defvjp(
    lambda matrix, x: (matrix @ x, (matrix, x)),
    lambda kept, dy: (jnp.outer(dy, kept[1])[::-1], kept[0].T @ dy),
)


@wrong("input-derivatives")
class RuleMixesUpRows(LoRA):
    """A `custom_vjp` of the call gives the gradient of `A` with its rows reversed."""

    def added(self, x):
        A, B = self.lora_A.astype(x.dtype), self.lora_B.astype(x.dtype)
        return self.scale() * (B @ transposed_rule(A, x))


@wrong("gradients")
class CallsBack(LoRA):
    """The call computes in a `pure_callback`, which has no derivative."""

    def added(self, x):
        y = super().added(x)
        return y + jax.pure_callback(lambda value: 0 * value, y, y, vmap_method="sequential")


@wrong("residual-gradients")
class CallsBackInMerge(LoRA):
    """`merge` computes in a `pure_callback`, which has no derivative."""

    def update(self):
        update = super().update()
        return jax.pure_callback(lambda value: value, update, update, vmap_method="sequential")


@wrong("state-round-trip")
class StaticFieldHoldsAValue(LoRA):
    """A static field holds the norm of the weight as a float."""

    size: float = eqx.field(static=True)

    def __init__(self, base, rank, alpha, *, key):
        super().__init__(base, rank, alpha, key=key)
        self.size = float(jnp.linalg.norm(base.weight.astype(jnp.float32)))


@wrong("state-round-trip")
class ShapeDependsOnValues(LoRA):
    """The rank is the number of singular values above a bound."""

    @classmethod
    def start(cls, W, rank, key):
        values = jnp.linalg.svd(W, compute_uv=False)
        return super().start(W, max(1, min(rank, int(jnp.sum(values > 0)))), key)


@wrong("no-shared-buffers")
class SharesItsBuffers(LoRA):
    """A field keeps the weight of the layer, whose buffer cannot be donated twice."""

    original: jax.Array

    def __init__(self, base, rank, alpha, *, key):
        super().__init__(base, rank, alpha, key=key)
        self.original = base.weight


@wrong("no-shared-buffers")
class KeepsItsBaseTwice(LoRA):
    """A second field keeps the whole layer."""

    original: eqx.Module

    def __init__(self, base, rank, alpha, *, key):
        super().__init__(base, rank, alpha, key=key)
        self.original = base


@wrong("residual-gradients")
class MagnitudeForgetsMixedDerivatives(Magnitude):
    """The call takes the norms as constants in derivatives, and `merge` does not."""

    def norms_of(self, V):
        return jax.lax.stop_gradient(self.norms(V))

    def __call__(self, x):
        V = float_of(self.base.weight) + self.update()
        W = (self.magnitude / self.norms_of(V))[:, None] * V
        bias = self.base.bias
        y = W.astype(x.dtype) @ x
        return y if bias is None else y + bias


@jax.custom_jvp
def first_order(x):
    return jnp.sin(x)


@first_order.defjvp
def _first_order_jvp(primals, tangents):
    return jnp.sin(primals[0]), jax.lax.stop_gradient(jnp.cos(primals[0])) * tangents[0]


@wrong("input-derivatives")
class FirstOrderAlone(LoRA):
    """A rule of the call is right to the first order alone."""

    def added(self, x):
        nothing = first_order(x) - jnp.sin(x)
        return super().added(x + nothing)


@wrong("trainable-fields")
class StaticArray(LoRA):
    """A static field holds an array."""

    factor: jax.Array = eqx.field(static=True)

    def __init__(self, base, rank, alpha, *, key):
        super().__init__(base, rank, alpha, key=key)
        self.factor = jnp.asarray(alpha / rank)


@wrong("state-round-trip")
class StaticFunction(LoRA):
    """A static field holds a function that each constructor defines anew."""

    forward: object = eqx.field(static=True)

    def __init__(self, base, rank, alpha, *, key):
        super().__init__(base, rank, alpha, key=key)
        self.forward = lambda x: x


class Holder:
    """Arrays in a plain Python object, where JAX does not see arrays."""

    def __init__(self, A, B):
        self.A, self.B = A, B


@wrong("trainable-fields")
class HidesItsArrays(LoRA):
    """The factors are in an object that is not a pytree."""

    adapter_fields = ("factors",)
    factors: Holder

    def __init__(self, base, rank, alpha, *, key):
        super().__init__(base, rank, alpha, key=key)
        self.factors = Holder(self.lora_A, self.lora_B)


@wrong("state-round-trip")
class FieldDependsOnValues(LoRA):
    """A field is `None` for layers whose weight has no negative entry."""

    shift: jax.Array | None

    def __init__(self, base, rank, alpha, *, key):
        super().__init__(base, rank, alpha, key=key)
        is_mixed = bool(jnp.any(base.weight < 0))
        self.shift = jnp.zeros(len(self.lora_B)) if is_mixed else None
