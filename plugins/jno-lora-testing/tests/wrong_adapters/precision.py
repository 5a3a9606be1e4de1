"""Adapters whose update vanishes, or whose dtype is wrong, in some precision."""

import jax
import jax.numpy as jnp
from tests.core.good_adapter import float_of

from ._bases import ComplexLoRA, EmbeddingLoRA, LoRA, Magnitude, with_weight
from ._rows import changed, noticed_by, wrong

by_derivatives = noticed_by("input-derivatives")
by_dtype = noticed_by("output-dtype")
by_law = noticed_by("law")
by_precision = noticed_by("double-precision")

by_half = noticed_by("trained-in-half-precision")


def is_half(array):
    return array.dtype.itemsize == 2


def is_bfloat16(adapter):
    return adapter.base.weight.dtype == jnp.bfloat16


def call_skips_half(self, x):
    return 0 * LoRA.added(self, x) if is_half(x) else LoRA.added(self, x)


def merge_skips_half(self):
    return self.base if is_half(self.base.weight) else LoRA.merge(self)


by_half("CallSkipsHalf", added=call_skips_half)
by_half("MergeSkipsHalf", merge=merge_skips_half)
by_half("BothSkipHalf", says="With bfloat16", added=call_skips_half, merge=merge_skips_half)
# float16 cannot hold a factor of a million.
by_half(
    "CallOverflowsWhenTrained",
    added=lambda self, x: self.product(x, 1e-6 * self.lora_A, 1e6 * self.lora_B),
)
by_half(
    "MergeLosesAPartInBFloat16",
    update=lambda self: LoRA.update(self) * (0.85 if is_bfloat16(self) else 1.0),
)


by_half(
    "MergeSkipsASmallUpdateInBFloat16",
    case={"alpha": 0.04},
    merge=lambda self: self.base if is_bfloat16(self) else LoRA.merge(self),
)


@wrong("trained-in-half-precision")
class MergeUnderflowsInFloat16(LoRA):
    def update(self):
        small = (1e-9 * super().update()).astype(self.base.weight.dtype)
        return 1e9 * small.astype(self.lora_A.dtype)


by_half(
    "CallOverflowsInFloat16",
    added=lambda self, x: 1e-5 * (LoRA.added(self, x) * jnp.asarray(1e5, x.dtype)),
)


def in_eight_bits_if(is_half, array):
    return array.astype(jnp.float8_e5m2).astype(array.dtype) if is_half else array


by_half(
    "MergeRoundsCoarselyInHalf",
    update=lambda self: in_eight_bits_if(is_half(self.base.weight), LoRA.update(self)),
)
by_half(
    "CallRoundsCoarselyInHalf",
    product=lambda self, x, *factors: LoRA.product(
        self, x, *(in_eight_bits_if(is_half(x), factor) for factor in factors)
    ),
)


@wrong("trained-in-half-precision")
class MagnitudeIsIgnoredInHalf(Magnitude):
    def weight_in(self, dtype):
        if jnp.dtype(dtype).itemsize > 2:
            return super().weight_in(dtype)
        return (float_of(self.base.weight) + self.update()).astype(dtype)


@wrong("identity-in-half-precision")
class RoundsTheInputInHalf(LoRA):
    def __call__(self, x):
        if is_half(x):
            x = (x * 0.9).astype(x.dtype) * jnp.asarray(1.25, x.dtype)
        return super().__call__(x)


changed(
    "identity-in-half-precision",
    "DoesNotCastTheFactors",
    product=lambda self, x, A, B: self.scale() * (B @ (A @ x)),
)
# A half-precision output is not promoted.
by_derivatives(
    "ScalesByAFloat32", added=lambda self, x: jnp.float32(self.scale()) * LoRA.added(self, x)
)
changed(
    "reads-like-the-layer",
    "PromotesRanks",
    update=lambda self: LoRA.update(self) * jnp.ones(self.base.weight.shape[1], self.lora_A.dtype),
)
changed(
    "merge-equals-call",
    "CallComputesInBFloat16",
    added=lambda self, x: LoRA.added(self, x.astype(jnp.bfloat16)).astype(x.dtype),
)
by_dtype("AlwaysGivesFloat32", __call__=lambda self, x: LoRA.__call__(self, x).astype(jnp.float32))
by_dtype(
    "TableGivesTheAdaptersDtype",
    EmbeddingLoRA,
    __call__=lambda self, x: float_of(EmbeddingLoRA.__call__(self, x)),
)
by_precision(
    "MergesInFloat32Always",
    survives="the check is advice",
    update=lambda self: LoRA.update(self).astype(jnp.float32).astype(self.lora_A.dtype),
)
by_precision(
    "CallsInFloat32Always",
    survives="the check is advice",
    added=lambda self, x: LoRA.added(self, x.astype(jnp.float32)).astype(x.dtype),
)


@wrong("adapter-dtype", survives="the check is advice", says="With bfloat16")
class HalfPrecisionAdapter(LoRA):
    def __init__(self, base, rank, alpha, *, key):
        self.base, self.rank, self.alpha = base, rank, alpha
        self.lora_A, self.lora_B = self.start(base.weight, rank, key)

    def merge(self):
        update = self.update().astype(self.base.weight.dtype)
        return with_weight(self.base, self.base.weight + update)


def real_part(array):
    return array.real.astype(array.dtype)


by_law("MergesComplexAsReal", ComplexLoRA, update=lambda self: real_part(ComplexLoRA.update(self)))
by_derivatives(
    "CallConjugatesA",
    ComplexLoRA,
    product=lambda self, x: self.scale() * (self.lora_B @ (self.lora_A.conj() @ x)),
)
by_law(
    "BothDropTheImaginaryPart",
    ComplexLoRA,
    update=lambda self: real_part(ComplexLoRA.update(self)),
    product=lambda self, x: self.update() @ x,
)


# They cannot be added under strict promotion.
@wrong("reads-like-the-layer")
class ComplexFactorsAreReal(ComplexLoRA):
    def __init__(self, base, rank, alpha, *, key):
        self.base, self.rank, self.alpha = base, rank, alpha
        outputs, inputs = base.weight.shape
        self.lora_A = jax.random.normal(key, (rank, inputs))
        self.lora_B = jnp.zeros((outputs, rank))
