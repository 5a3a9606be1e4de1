"""Adapters that train the wrong arrays, or with the wrong gradients."""

import jax
import jax.numpy as jnp
from tests.core.gated_adapters import Gated, PenaltyPullsOnTheBase
from tests.core.good_adapter import float_of

from ._bases import Frozen, LoRA, fed, term, updated, with_bias, with_tangent, with_weight
from ._rows import Field, changed, noticed_by, trained, wrong

by_contract = noticed_by("contract")
by_count = noticed_by("parameter-count")
by_derivatives = noticed_by("input-derivatives")
by_fields = noticed_by("trainable-fields")
by_gradients = noticed_by("gradients")
by_penalty = noticed_by("penalty")


stop = jax.lax.stop_gradient

by_contract("MisspellsAField", says="lora_b", adapter_fields=("lora_A", "lora_b"))
by_contract("TrainsItsBase", adapter_fields=("base", "lora_A", "lora_B"))
by_contract("ForgetsTheComma", adapter_fields="lora_A")
by_contract("TrainsAStaticField", adapter_fields=("lora_A", "lora_B", "alpha"))
by_count("ForgetsB", adapter_fields=("lora_A",))
by_count("ForgetsA", adapter_fields=("lora_B",))
by_count("TrainsTheFrozenScales", Frozen, adapter_fields=("lora_A", "lora_B", "scales"))
changed(
    "law",
    "TrainsACopyOfTheWeight",
    copied=trained(lambda self, base, key: jnp.copy(float_of(base.weight))),
    merge=lambda self: with_weight(self.base, self.copied + self.update()),
    __call__=lambda self, x: self.merge()(x),
)


def zeros_like_bias(self, base, key):
    return jnp.zeros(len(self.lora_B), self.lora_B.dtype)


by_count("NeverUsesAField", shift=trained(zeros_like_bias))
by_fields("TrainsAPythonNumber", gain=trained(lambda self, base, key: 1.0))
by_fields("TrainsACount", count=trained(lambda self, base, key: jnp.zeros((), jnp.int32)))
by_fields(
    "TrainsABooleanMask",
    mask=trained(lambda self, base, key: jnp.ones(base.weight.shape, bool)),
    update=lambda self: LoRA.update(self) * self.mask.astype(self.lora_A.dtype),
)
by_contract("NamesAMissingOptionalField", optional_fields=("gain",))


class Shifted(LoRA):
    def added(self, x):
        return super().added(x) + self.shift.astype(x.dtype)

    def merge(self):
        plain = super().merge()
        bias = plain.bias
        return plain if bias is None else with_bias(plain, bias + self.shift.astype(bias.dtype))


changed(
    None,
    "OptionalFieldIsNotNamed",
    Shifted,
    survives="a frozen field of zeros may be meant",
    shift=Field(zeros_like_bias),
)
DoesNothing = changed(
    "adapter-acts", "DoesNothing", factors=lambda self: (0 * self.lora_A, self.lora_B)
)
by_gradients("StopsA", factors=lambda self: (stop(self.lora_A), self.lora_B))
by_gradients("StopsB", factors=lambda self: (self.lora_A, stop(self.lora_B)))
# The gradient of rounding is zero.
by_gradients("RoundsA", factors=lambda self: (jnp.round(8 * self.lora_A) / 8, self.lora_B))
changed("merge-gradients", "MergeStopsTheUpdate", update=updated(stop))


doubled_gradient = with_tangent(lambda array: array, lambda primals, tangents: 2 * tangents[0])
changed(
    "residual-gradients",
    "DoublesGradients",
    added=lambda self, x: self.product(x, self.lora_A, doubled_gradient(self.lora_B)),
)
by_derivatives(
    "StopsTheFirstProduct",
    product=lambda self, x, A, B: self.scale() * (B.astype(x.dtype) @ stop(A.astype(x.dtype) @ x)),
)
by_derivatives("StopsTheInput", added=fed(stop))
by_derivatives("StopsTheWholeUpdate", added=term(stop))
# Layers before it do not learn.
by_derivatives("StopsTheBase", __call__=lambda self, x: stop(self.base(x)) + self.added(x))


@wrong("residual-gradients")
class ForgetsMixedDerivatives(LoRA):
    """Right by the input, and right by the arrays, but not by both."""

    def added(self, x):
        A, B = self.factors()
        nothing = self.product(stop(x), A, B) - self.product(stop(x), stop(A), stop(B))
        return self.product(x, stop(A), stop(B)) + nothing


@wrong("residual-gradients")
class HasDirectionsWithoutGradient(LoRA):
    def added(self, x):
        is_first = (jnp.arange(self.rank) == 0)[:, None]
        return self.product(x, jnp.where(is_first, self.lora_A, stop(self.lora_A)), self.lora_B)


wrong("penalty")(PenaltyPullsOnTheBase)
by_penalty("PenaltyIsAVector", Gated, penalty=lambda self: jnp.sum(self.lora_A**2, axis=1))
by_penalty(
    "PenaltyIsConstant",
    Gated,
    says="moves no trained array",
    penalty=lambda self: jnp.asarray(float(self.rank)),
)
by_penalty(
    "PenaltyStopsA",
    Gated,
    says="moves no trained array",
    penalty=lambda self: jnp.sum(stop(self.lora_A)),
)
by_penalty(
    "GradientOfThePenaltyIsNaNAtTheStart",
    Gated,
    says="At the start, the gradient of the penalty by `gate` is not finite",
    penalty=lambda self: jnp.sqrt(jnp.sum(self.gate**2)),
)
by_penalty(
    "PenaltyDividesByTheGate",
    Gated,
    says="At the start, the penalty is inf",
    penalty=lambda self: jnp.sum(self.lora_A**2) / jnp.sum(self.gate**2),
)
by_penalty(
    "PenaltyReadsPython", Gated, penalty=lambda self: jnp.asarray(float(jnp.sum(self.lora_A**2)))
)
by_penalty("PenaltyOverflows", Gated, penalty=lambda self: jnp.exp(100 * jnp.sum(self.lora_A**2)))
by_penalty(
    "PenaltyTakesAWeight", Gated, penalty=lambda self, weight: weight * jnp.sum(self.lora_A**2)
)
