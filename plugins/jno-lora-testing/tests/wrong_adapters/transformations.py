"""Adapters that fail, or differ, under a transformation of JAX."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import io_callback
from tests.core.good_adapter import float_of

from ._bases import LoRA, Magnitude, fed, term, updated, with_tangent, with_weight
from ._rows import Field, changed, noticed_by, static, wrong

by_buffers = noticed_by("no-shared-buffers")
by_derivatives = noticed_by("input-derivatives")
by_file = noticed_by("state-round-trip")


@wrong("input-jet")
class NeedsABatch(LoRA):
    def __call__(self, x):
        rows = x.reshape(-1, self.base.in_features)
        return jax.vmap(lambda row: self.base(row) + self.added(row))(rows)


@jax.custom_batching.custom_vmap
def size_of_batch(x):
    return jnp.ones(())


@size_of_batch.def_vmap
def _size_of_batch_rule(axis_size, in_batched, x):
    return jnp.full(axis_size, float(axis_size)), True


changed(
    "vmap",
    "DividesByTheBatch",
    added=lambda self, x: LoRA.added(self, x) / size_of_batch(x).astype(x.dtype),
)


@wrong("no-lapack-in-step")
class DecomposesInTheCall(LoRA):
    def added(self, x):
        A = self.lora_A.astype(jnp.float32).T
        Q, R = jnp.linalg.qr(A)
        return super().added(x) + 0 * jnp.sum(Q @ R - A).astype(x.dtype)


@wrong("input-derivatives")
class LoopsWithoutEnd(LoRA):
    def added(self, x):
        loops = jax.lax.while_loop(lambda n: n[0] < 1, lambda n: (n[0] + 1, n[1] + x), (0, 0 * x))
        return super().added(loops[1])


def with_rule(gradient_of_matrix):
    product = jax.custom_vjp(lambda matrix, x: matrix @ x)
    product.defvjp(
        lambda matrix, x: (matrix @ x, (matrix, x)),
        lambda kept, dy: (gradient_of_matrix(dy, kept[1]), kept[0].T @ dy),
    )
    return product


right_rule = with_rule(jnp.outer)
reversed_rule = with_rule(lambda dy, x: jnp.outer(dy, x)[::-1])


def with_product(function):
    def added(self, x):
        A, B = (factor.astype(x.dtype) for factor in self.factors())
        return self.scale() * function(B, function(A, x))

    return added


by_derivatives("HasReverseModeAlone", added=with_product(right_rule))
by_derivatives("RuleReversesRows", added=with_product(reversed_rule))


# All derivatives are right, but Taylor mode does not see them.
hidden = with_tangent(jnp.matmul, lambda primals, d: d[0] @ primals[1] + primals[0] @ d[1])
HidesItsProduct = changed("input-jet", "HidesItsProduct", added=with_product(hidden))


@wrong("jet-rules", survives="the adapter is right, and JAX has a gap")
class SetsAnOutput(LoRA):
    def __call__(self, x):
        y = super().__call__(x)
        return y.at[0].set(y[0])


def called_back(array):
    return jax.pure_callback(lambda value: value, array, array, vmap_method="sequential")


# A callback has no derivative.
changed("gradients", "CallsBack", added=term(called_back))
changed("residual-gradients", "CallsBackInMerge", update=updated(called_back))


@wrong("constructor-vmap-and-scan")
class CallsBackInItsConstructor(LoRA):
    @classmethod
    def applies_to(cls, leaf):
        return super().applies_to(leaf) and leaf.weight.ndim == 2

    @classmethod
    def start(cls, W, rank, key):
        A, B = super().start(W, rank, key)
        return jax.pure_callback(lambda A: A + 1, A, A), B


def tick(x):
    io_callback(lambda: None, None)
    return x


# Work that reaches outside cannot be replayed.
ticking = with_tangent(tick, lambda primals, tangents: tangents[0])
changed("checkpoint", "HasSideEffects", added=fed(ticking))
by_file(
    "StaticFieldHoldsAValue",
    size=static(lambda self, base, key: float(jnp.linalg.norm(base.weight.astype(jnp.float32)))),
)
changed(
    "eval-shape",
    "StaticFieldSaysWhetherItIsTraced",
    tag=static(lambda self, base, key: isinstance(base.weight, jax.core.Tracer)),
)


@wrong("state-round-trip")
class ShapeDependsOnValues(LoRA):
    @classmethod
    def start(cls, W, rank, key):
        values = jnp.linalg.svd(W, compute_uv=False)
        return super().start(W, max(1, min(rank, int(jnp.sum(values > 0)))), key)


@wrong("jit")
class StartDependsOnValues(LoRA):
    @classmethod
    def start(cls, W, rank, key):
        A, B = super().start(W, rank, key)
        return float(jnp.std(W)) * A, B


# A buffer cannot be donated twice.
by_buffers("KeepsTheWeightTwice", original=Field(lambda self, base, key: base.weight))
by_buffers("KeepsItsBaseTwice", original=Field(lambda self, base, key: base))
by_buffers("KeepsATwice", first=Field(lambda self, base, key: self.lora_A))


@wrong("residual-gradients")
class MagnitudeForgetsMixedDerivatives(Magnitude):
    """The call takes the norms as constants in derivatives, and `merge` does not."""

    def __call__(self, x):
        V = float_of(self.base.weight) + self.update()
        W = (self.magnitude / jax.lax.stop_gradient(self.norms(V)))[:, None] * V
        bias = self.base.bias
        y = W.astype(x.dtype) @ x
        return y if bias is None else y + bias


first_order = with_tangent(
    jnp.sin, lambda primals, tangents: jax.lax.stop_gradient(jnp.cos(primals[0])) * tangents[0]
)
by_derivatives(
    "RightToTheFirstOrderAlone",
    added=lambda self, x: LoRA.added(self, x + (first_order(x) - jnp.sin(x))),
)
StaticArray = changed(
    "trainable-fields",
    "StaticArray",
    factor=static(lambda self, base, key: np.ones(base.weight.shape)),
)
# Each constructor defines the function anew.
by_file("StaticFunction", forward=static(lambda self, base, key: lambda x: x))


class Holder:
    """Arrays in a plain Python object, where JAX does not see arrays."""

    def __init__(self, A, B):
        self.A, self.B = A, B


@wrong("trainable-fields")
class HidesItsArrays(LoRA):
    adapter_fields = ("factors",)
    factors: Holder

    def __init__(self, base, rank, alpha, *, key):
        super().__init__(base, rank, alpha, key=key)
        self.factors = Holder(self.lora_A, self.lora_B)


by_file(
    "FieldDependsOnValues",
    shift=Field(lambda self, base, key: jnp.zeros(4) if bool(jnp.any(base.weight < 0)) else None),
)


# It claims stacks.
changed(
    "stacked-layers",
    "TakesAStackForALayer",
    also="answers",
    stack_ndim=lambda cls, leaf: 0,
)


@wrong("unwrap-restores")
class SpoilsItsBase(LoRA):
    """Takes the update out of the weight, and `unwrap` does not put it back."""

    @classmethod
    def first_B(cls, W, rank, key):
        return jax.random.normal(key, (W.shape[0], rank), W.dtype)

    def __init__(self, base, rank, alpha, *, key):
        super().__init__(base, rank, alpha, key=key)
        self.base = with_weight(base, float_of(base.weight) - self.update())

    @classmethod
    def from_state(cls, base, state, rank, alpha):
        fresh = cls(base, rank, alpha, key=jax.random.key(3))
        factors = (state["lora_A"], state["lora_B"])
        return eqx.tree_at(lambda node: (node.lora_A, node.lora_B), fresh, factors)
