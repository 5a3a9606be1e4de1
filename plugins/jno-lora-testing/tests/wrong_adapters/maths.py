"""Wrong laws: in the call, in the merge, or in both against the paper."""

import jax.numpy as jnp
from tests.core.gated_adapters import Gated
from tests.core.good_adapter import float_of

from jno.lora import LowRankForm

from ._bases import LoRA, Magnitude, updated, with_weight
from ._rows import Field, noticed_by, wrong

by_alpha = noticed_by("alpha")
by_call = noticed_by("merge-equals-call")
by_derivatives = noticed_by("input-derivatives")
by_law = noticed_by("law")
by_ranks = noticed_by("ranks")


by_law("MergeScalesTwice", update=lambda self: self.scale() * LoRA.update(self))
by_call("MergeForgetsTheScale", update=lambda self: self.lora_B @ self.lora_A)
CallForgetsTheScale = by_call(
    "CallForgetsTheScale", added=lambda self, x: LoRA.added(self, x) / self.scale()
)
by_law("MergeTakesTheRootOfTheRank", update=lambda self: LoRA.update(self) * self.rank**0.5)
by_law("ScalesByTheRoot", scale=lambda self: self.alpha / self.rank**0.5)
by_law("InvertsTheScale", scale=lambda self: self.rank / self.alpha)
by_law("ScalesByAlphaAlone", scale=lambda self: self.alpha)
# Call and merge agree, and an author without a law has no other check that could tell.
by_alpha(
    "AlphaIsIgnored",
    says="The output is the same with alpha",
    case={"law": None},
    scale=lambda self: 2.0,
    low_rank_scale=lambda cls, rank, alpha: 2.0,
)
by_alpha("DividesIntegers", scale=lambda self: self.alpha // self.rank)
by_alpha(
    "TakesAlphaZeroForTheDefault",
    says="With alpha 0.0",
    scale=lambda self: (self.alpha or self.rank) / self.rank,
)
by_alpha("DividesByAlpha", scale=lambda self: 1 / (self.rank / self.alpha))
by_alpha("RoundsAlpha", scale=lambda self: int(self.alpha) / self.rank)
# `merge` scales by the number of directions, the call by the rank that was asked for.
by_ranks(
    "ClampsTheRankInTheScale",
    start=lambda cls, W, rank, key: LoRA.start(W, min(rank, *W.shape), key),
    update=lambda self: self.alpha / len(self.lora_A) * (self.lora_B @ self.lora_A),
)
# An orthogonal matrix has as many rows as the layer has inputs.
by_ranks(
    "ClampsTheRankAtTheInputs",
    start=lambda cls, W, rank, key: (
        jnp.eye(W.shape[1], dtype=W.dtype)[:rank],
        cls.first_B(W, rank, key),
    ),
)


def transposed_if_square(update):
    return update.T if update.shape[0] == update.shape[1] else update


by_law("MergeTransposesSquareWeights", update=updated(transposed_if_square))
by_law(
    "ReadsSquareWeightsTransposed",
    update=updated(transposed_if_square),
    added=lambda self, x: self.update().astype(x.dtype) @ x,
)


def reshaped(self):
    """`A^T B^T`, reshaped to the weight's shape instead of transposed."""
    return self.scale() * (self.lora_A.T @ self.lora_B.T).reshape(self.base.weight.shape)


by_derivatives("MergeReshapesTheTransposed", update=reshaped)
by_law(
    "BothReshapeTheTransposed",
    update=reshaped,
    added=lambda self, x: self.update().astype(x.dtype) @ x,
)


def first(array, count, axis):
    """The array with zeros after the first `count` numbers along the axis."""
    is_first = jnp.arange(array.shape[axis]) < count
    return array * jnp.expand_dims(is_first, 1 - axis).astype(array.dtype)


by_law("ReadsTheInputBackwards", factors=lambda self: (self.lora_A[:, ::-1], self.lora_B))
by_law("UsesTheFirstDirectionAlone", factors=lambda self: (self.lora_A, first(self.lora_B, 1, 1)))
by_law(
    "WideLayersLoseInputs",
    factors=lambda self: (first(self.lora_A, self.base.out_features, 1), self.lora_B),
)
by_law(
    "TallLayersLoseOutputs",
    factors=lambda self: (self.lora_A, first(self.lora_B, self.base.in_features, 0)),
)
by_law(
    "DividesByTheNormOfA",
    factors=lambda self: (self.lora_A / jnp.linalg.norm(self.lora_A), self.lora_B),
)


by_call(
    "AddsTheBiasTwice",
    added=lambda self, x: LoRA.added(self, x) + (0 if self.base.bias is None else self.base.bias),
)
NeedsABias = by_call(
    "NeedsABias", __call__=lambda self, x: self.base.weight @ x + self.base.bias + self.added(x)
)
by_derivatives(
    "ScalesTheBaseToo", __call__=lambda self, x: self.scale() * self.base(x) + self.added(x)
)


# No weight can do this.
by_derivatives(
    "BendsTheMiddle",
    product=lambda self, x, A, B: (
        self.scale() * (B.astype(x.dtype) @ jnp.tanh(A.astype(x.dtype) @ x))
    ),
)


by_derivatives("CallDividesByTheNumberOfInputs", added=lambda self, x: LoRA.added(self, x) / len(x))
by_derivatives("MergeSubtracts", update=lambda self: -LoRA.update(self))
by_derivatives("MergeClipsTheUpdate", update=updated(lambda W: jnp.clip(W, -0.5, 0.5)))
by_derivatives("MergeRoundsTheUpdate", update=updated(lambda W: W.round(2)))
by_derivatives("MergeForgetsTheBase", merge=lambda self: with_weight(self.base, self.update()))
by_derivatives(
    "MergeUsesTheFirstA",
    first_A=Field(lambda self, base, key: jnp.copy(self.lora_A)),
    update=lambda self: self.scale() * (self.lora_B @ self.first_A),
)


@wrong("input-derivatives")
class MergeForgetsTheGate(Gated):
    def merge(self):
        W = float_of(self.base.weight) + self.alpha / self.rank * (self.lora_B @ self.lora_A)
        return with_weight(self.base, W)


@wrong("law")
class GatesTwice(Gated):
    def low_rank_form(self):
        A, B, *_ = super().low_rank_form()
        return LowRankForm(A, B * self.gate[None, :])


@wrong("input-derivatives")
class CallGatesBothFactors(Gated):
    def __call__(self, x):
        A, B = (factor.astype(x.dtype) for factor in self.low_rank_form()[:2])
        return self.base(x) + B @ (self.gate.astype(x.dtype) * (A @ x))


by_law(
    "TakesNormsOfColumnsOfASquareWeight",
    Magnitude,
    norms=lambda cls, V: Magnitude.norms(transposed_if_square(V)),
)


@wrong("law")
class TakesNormsOfTheOldWeight(Magnitude):
    def weight_in(self, dtype):
        W = float_of(self.base.weight)
        return ((self.magnitude / self.norms(W))[:, None] * (W + self.update())).astype(dtype)


@wrong("law")
class MergeTakesNormsOfTheOldWeight(Magnitude):
    def merge(self):
        W = float_of(self.base.weight)
        scale = self.magnitude / self.norms(W)
        return with_weight(self.base, scale[:, None] * (W + self.update()))


@wrong("law")
class MagnitudeScalesTheUpdateAlone(Magnitude):
    def weight_in(self, dtype):
        scaled = self.magnitude[:, None] * self.update()
        return (float_of(self.base.weight) + scaled).astype(dtype)


@wrong("input-derivatives")
class MagnitudeScalesTheBias(Magnitude):
    def __call__(self, x):
        V = float_of(self.base.weight) + self.update()
        scale = (self.magnitude / self.norms(V)).astype(x.dtype)
        return scale * (self.base(x) + self.added(x))
