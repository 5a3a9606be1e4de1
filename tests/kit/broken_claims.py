"""Adapters that say something wrong in an optional member, or are wrong where authors do not look.

Each changes `Good` or `Gated` in one point.
"""

import equinox as eqx
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from tests.core.data_adapters import Informed, Tied
from tests.core.gated_adapters import Gated

from jno.lora import Statistic

from .broken_adapters import Good, float_of, update


class TransposedMatrix(Good):
    @classmethod
    def matrix(cls, layer):
        return float_of(layer.weight).T


class RaisingMatrix(Good):
    @classmethod
    def matrix(cls, layer):
        return layer.kernel


class ForgetsTheScaleOfItsUpdate(Good):
    def low_rank_update(self):
        return self.lora_A, self.lora_B


class SwapsItsFactors(Good):
    def low_rank_update(self):
        return (self.alpha / self.rank) * self.lora_B, self.lora_A


class ForgetsItsGate(Gated):
    def __call__(self, x):
        A, B = (factor.astype(x.dtype) for factor in Gated.low_rank_update(self))
        return self.base(x) + B @ (A @ x)

    def merge(self):
        A, B = Gated.low_rank_update(self)
        W = float_of(self.base.weight) + B @ A
        return eqx.tree_at(lambda m: m.weight, self.base, W.astype(self.base.weight.dtype))

    def low_rank_update(self):
        return self.lora_A, (self.alpha / self.rank) * self.lora_B


class SaysAlphaForItsScale(Good):
    @classmethod
    def low_rank_scale(cls, rank, alpha):
        return alpha


class SwapsItsSides(Good):
    factor_sides = {"lora_A": "output", "lora_B": "input"}  # noqa: RUF012


class ForgetsAnAxis(Gated):
    rank_axes = {"lora_A": 0}  # noqa: RUF012


class RaisesInWhyNot(Good):
    @classmethod
    def why_not(cls, leaf):
        return f"the weight has {leaf.weight.ndim} axes"


class RejectsWhatItClaims(Good):
    @classmethod
    def why_not(cls, leaf):
        return "the layer is too small"


class SaysStateful(Good):
    def is_stateful(self):
        return True


class ShardsNoField(Good):
    def partition_specs(self):
        return {"lora_down": PartitionSpec()}


class KeepsATable(Good):
    table: jnp.ndarray

    def __init__(self, base, rank, alpha, *, key):
        super().__init__(base, rank, alpha, key=key)
        self.table = jnp.zeros(1000 * base.weight.size)


class IsOtherwiseForZeros(Good):
    def __call__(self, x):
        constant = jnp.where(jnp.all(x == 0), jnp.sum(self.lora_B).astype(x.dtype), 0)
        return super().__call__(x) + constant


class TakesAlphaZeroForOne(Good):
    def __call__(self, x):
        A, B = self.lora_A.astype(x.dtype), self.lora_B.astype(x.dtype)
        return self.base(x) + ((self.alpha or 1.0) / self.rank) * (B @ (A @ x))


class VanishesInHalfPrecision(Good):
    def __call__(self, x):
        return self.base(x) if x.dtype.itemsize == 2 else super().__call__(x)

    def merge(self):
        return self.base if self.base.weight.dtype.itemsize == 2 else super().merge()


class ComputesForASubclass(Good):
    @classmethod
    def applies_to(cls, leaf):
        return isinstance(leaf, eqx.nn.Linear) and eqx.is_inexact_array(leaf.weight)

    def __call__(self, x):
        W = self.base.weight + update(self).astype(self.base.weight.dtype)
        return W.astype(x.dtype) @ x + self.base.bias


class AddsToASubclass(ComputesForASubclass):
    def __call__(self, x):
        return Good.__call__(self, x)


class ChangesItsLayer(Good):
    def __init__(self, base, rank, alpha, *, key):
        object.__setattr__(base, "weight", base.weight + 0)
        super().__init__(base, rank, alpha, key=key)


class IgnoresItsKey(Good):
    def __init__(self, base, rank, alpha, *, key):
        super().__init__(base, rank, alpha, key=key)
        self.lora_A = jnp.sin(jnp.arange(self.lora_A.size, dtype=self.lora_A.dtype)).reshape(
            self.lora_A.shape
        )


class PenaltyIsARootOfZero(Gated):
    def penalty(self):
        return jnp.sqrt(jnp.sum(self.gate**2))


class ReadsTheWholeSharedArray(Tied):
    def low_rank_update(self):
        A = self.lora_A.array.astype(self.lora_B.dtype)
        return A, (self.alpha / self.rank) * self.lora_B


class MeanOfTheBatch(Statistic):
    name = "mean_of_the_batch"

    @staticmethod
    def left(V):
        return V / len(V)


class MeasuresBatches(Informed):
    needs = (MeanOfTheBatch,)

    def __init__(self, base, rank, alpha, *, key, statistics):
        covariance = {"input_covariance": statistics["mean_of_the_batch"]}
        super().__init__(base, rank, alpha, key=key, statistics=covariance)


# The check that must notice each adapter, and what its message says.
CLAIMS = {
    TransposedMatrix: ("matrix", r"the shape \(6, 4\), not \(4, 6\)"),
    RaisingMatrix: ("matrix", "kernel"),
    ForgetsTheScaleOfItsUpdate: ("low-rank-update", "not the update by which `merge"),
    SwapsItsFactors: ("low-rank-update", r"factors `A` \(4, 2\) and `B` \(2, 6\)"),
    ForgetsItsGate: ("low-rank-update", "not the update by which `merge"),
    SaysAlphaForItsScale: ("low-rank-scale", "not the update by which `merge"),
    SwapsItsSides: ("factor-sides", r"`lora_B` \(4, 2\) is `A`"),
    ForgetsAnAxis: ("rank-gate", "'lora_B' grows with the rank along axis"),
    RaisesInWhyNot: ("answers", "`why_not` raises for None"),
    RejectsWhatItClaims: ("answers", "'the layer is too small'"),
    SaysStateful: ("answers", r"`is_stateful\(\)` is True"),
    ShardsNoField: ("partition-specs", "'lora_down', which is not a field"),
    KeepsATable: ("state-size", "numbers"),
    IsOtherwiseForZeros: ("special-inputs", "For inputs of zeros"),
    TakesAlphaZeroForOne: ("alpha", "With alpha 0.0"),
    VanishesInHalfPrecision: ("trained-in-half-precision", "With bfloat16"),
    ComputesForASubclass: ("subclass", "a subclass with a `__call__`"),
    AddsToASubclass: ("subclass-merge", "a subclass with a `__call__`"),
    ChangesItsLayer: ("purity", "The constructor changes the layer"),
    IgnoresItsKey: ("key-forms", "`lora_A` are the same for every key"),
    PenaltyIsARootOfZero: ("penalty", "At the start, the gradient of the penalty by `gate`"),
    ReadsTheWholeSharedArray: ("shared-arrays", "Two layers of different widths fail"),
    MeasuresBatches: ("calibration", "depends on how rows are batched"),
}
