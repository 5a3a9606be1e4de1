"""Adapters whose update vanishes, or whose dtype is wrong, in some precision."""

import equinox as eqx
import jax
import jax.numpy as jnp
from tests.core.good_adapter import float_of

from ._bases import ComplexLoRA, EmbeddingLoRA, LoRA, Magnitude, with_bias
from ._rows import wrong


def is_half(array):
    return array.dtype.itemsize == 2


@wrong("trained-in-half-precision")
class CallOverflowsWhenTrained(LoRA):
    """The call moves a factor of a million from `A` to `B`, which float16 cannot hold."""

    def added(self, x):
        A, B = (1e-6 * self.lora_A).astype(x.dtype), (1e6 * self.lora_B).astype(x.dtype)
        return self.scale() * (B @ (A @ x))


@wrong("trained-in-half-precision")
class CallSkipsHalf(LoRA):
    """The call adds nothing unless the input is float32 or wider."""

    def added(self, x):
        return jnp.zeros(len(self.lora_B), x.dtype) if is_half(x) else super().added(x)


@wrong("trained-in-half-precision")
class MergeSkipsHalf(LoRA):
    """`merge` of a half-precision layer returns the layer."""

    def merge(self):
        return self.base if is_half(self.base.weight) else super().merge()


def is_bfloat16(array):
    return array.dtype == jnp.bfloat16


@wrong("trained-in-half-precision")
class MergeLosesAPartInBFloat16(LoRA):
    """`merge` of a bfloat16 layer adds 85 % of the update."""

    def update(self):
        update = super().update()
        return 0.85 * update if is_bfloat16(self.base.weight) else update


@wrong("trained-in-half-precision", alpha=0.04)
class MergeSkipsASmallUpdateInBFloat16(LoRA):
    """`merge` of a bfloat16 layer with a small alpha returns the layer."""

    def merge(self):
        return self.base if is_bfloat16(self.base.weight) else super().merge()


@wrong("trained-in-half-precision")
class MergeUnderflowsInFloat16(LoRA):
    """`merge` divides the update by 1e9 in the layer's dtype and multiplies it again."""

    def update(self):
        small = (1e-9 * super().update()).astype(self.base.weight.dtype)
        return 1e9 * small.astype(self.lora_A.dtype)


@wrong("trained-in-half-precision")
class CallOverflowsInFloat16(LoRA):
    """The call multiplies by 1e5 in the input's dtype and divides again."""

    def added(self, x):
        return 1e-5 * (super().added(x) * jnp.asarray(1e5, x.dtype))


@wrong("trained-in-half-precision")
class MergeRoundsCoarselyInHalf(LoRA):
    """`merge` of a half-precision layer casts the update to eight bits on the way."""

    def update(self):
        update = super().update()
        if not is_half(self.base.weight):
            return update
        return update.astype(jnp.float8_e5m2).astype(update.dtype)


@wrong("trained-in-half-precision")
class CallRoundsCoarselyInHalf(LoRA):
    """The call of a half-precision layer casts the factors to eight bits on the way."""

    def added(self, x):
        if not is_half(x):
            return super().added(x)
        A, B = (a.astype(jnp.float8_e5m2).astype(x.dtype) for a in (self.lora_A, self.lora_B))
        return self.scale() * (B @ (A @ x))


@wrong("trained-in-half-precision")
class MagnitudeIsIgnoredInHalf(Magnitude):
    """DoRA in half precision takes the norms of the weight for the magnitude."""

    def weight_in(self, dtype):
        weight = super().weight_in(dtype)
        if jnp.dtype(dtype).itemsize > 2:
            return weight
        V = float_of(self.base.weight) + self.update()
        return V.astype(dtype)


@wrong("identity-in-half-precision")
class DoesNotCastTheFactors(LoRA):
    """The call multiplies float32 factors by an input in half precision."""

    def added(self, x):
        return self.scale() * (self.lora_B @ (self.lora_A @ x))


@wrong("input-derivatives")
class ScalesByAFloat32(LoRA):
    """The scale is a float32 array, which a half-precision output is not promoted to."""

    def added(self, x):
        return jnp.float32(self.scale()) * super().added(x)


@wrong("reads-like-the-layer")
class PromotesRanks(LoRA):
    """Multiplies a matrix by a vector without an axis for the rows."""

    def update(self):
        return super().update() * jnp.ones(self.base.weight.shape[1], self.lora_A.dtype)


@wrong("merge-equals-call")
class CastsTheInputDown(LoRA):
    """The call computes the update in bfloat16, for speed."""

    def added(self, x):
        return super().added(x.astype(jnp.bfloat16)).astype(x.dtype)


@wrong("output-dtype")
class AlwaysGivesFloat32(LoRA):
    """The call gives float32 in every precision."""

    def __call__(self, x):
        return super().__call__(x).astype(jnp.float32)


@wrong("output-dtype")
class TableGivesTheAdaptersDtype(EmbeddingLoRA):
    """The row of a half-precision table comes in float32."""

    def __call__(self, x):
        row = super().__call__(x)
        return row.astype(float_of(row).dtype)


@wrong(None, survives="the check `double-precision` is advice")
class MergesInFloat32Always(LoRA):
    """`merge` of a float64 layer computes in float32."""

    def update(self):
        return super().update().astype(jnp.float32).astype(self.lora_A.dtype)


@wrong("law")
class MergesComplexAsReal(ComplexLoRA):
    """`merge` adds the real part of a complex update."""

    def update(self):
        update = super().update()
        return update.real.astype(update.dtype)


@wrong("input-derivatives")
class CallConjugatesA(ComplexLoRA):
    """The call conjugates the factor `A` of a complex layer."""

    def __call__(self, x):
        conjugated = eqx.tree_at(lambda node: node.lora_A, self, self.lora_A.conj())
        return self.base(x) + ComplexLoRA.added(conjugated, x)


@wrong("law")
class BothDropTheImaginaryPart(ComplexLoRA):
    """The call and `merge` add the real part of a complex update."""

    def update(self):
        update = super().update()
        return update.real.astype(update.dtype)

    def added(self, x):
        y = self.update() @ x.astype(self.lora_A.dtype)
        return jnp.concatenate([y.real, y.imag]).astype(x.dtype)


@wrong("reads-like-the-layer")
class ComplexFactorsAreReal(ComplexLoRA):
    """Complex layers get real factors, which cannot be added under strict promotion."""

    def __init__(self, base, rank, alpha, *, key):
        self.base, self.rank, self.alpha = base, rank, alpha
        outputs, inputs = base.weight.shape
        self.lora_A = jax.random.normal(key, (rank, inputs))
        self.lora_B = jnp.zeros((outputs, rank))


@wrong("merge-restores-form")
class MergeKeepsTheUpdatesDtype(LoRA):
    """`merge` of a half-precision layer has a float32 bias."""

    def merge(self):
        plain = super().merge()
        return plain if plain.bias is None else with_bias(plain, float_of(plain.bias))
