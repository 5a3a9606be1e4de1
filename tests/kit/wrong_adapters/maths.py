"""Wrong laws: in the call, in the merge, or in both against the paper."""

import jax
import jax.numpy as jnp
from tests.core.gated_adapters import Gated
from tests.core.good_adapter import float_of

from ._bases import LoRA, Magnitude, with_bias, with_weight
from ._rows import wrong


@wrong("law")
class MergeDoublesTheScale(LoRA):
    """`merge` applies the scale twice."""

    def update(self):
        return self.scale() * super().update()


@wrong("merge-equals-call")
class CallForgetsTheScale(LoRA):
    """The call adds `B A x` without the scale."""

    def added(self, x):
        return super().added(x) / self.scale()


@wrong("law")
class MergeTakesTheRootOfTheRank(LoRA):
    """`merge` scales by `alpha / sqrt(rank)`, the call by `alpha / rank`."""

    def update(self):
        return self.alpha / self.rank**0.5 * (self.lora_B @ self.lora_A)


@wrong("law")
class ScalesByTheRoot(LoRA):
    """The scale is rsLoRA's, `alpha / sqrt(rank)`."""

    def scale(self):
        return self.alpha / self.rank**0.5


@wrong("law")
class InvertsTheScale(LoRA):
    """The scale is `rank / alpha`."""

    def scale(self):
        return self.rank / self.alpha


@wrong("law")
class ScalesByAlphaAlone(LoRA):
    """The scale is `alpha`, whatever the rank."""

    def scale(self):
        return self.alpha


@wrong("alpha")
class DividesIntegers(LoRA):
    """The scale is `alpha // rank`."""

    def scale(self):
        return self.alpha // self.rank


@wrong("alpha")
class TakesAlphaZeroForTheDefault(LoRA):
    """`alpha or rank` scales by one if alpha is zero."""

    def scale(self):
        return (self.alpha or self.rank) / self.rank


@wrong("alpha")
class DividesByAlpha(LoRA):
    """The scale is `1 / (rank / alpha)`, which fails if alpha is zero."""

    def scale(self):
        return 1 / (self.rank / self.alpha)


@wrong("alpha")
class RoundsAlpha(LoRA):
    """`int(alpha)` drops the fraction of alpha."""

    def scale(self):
        return int(self.alpha) / self.rank


@wrong("ranks")
class ClampsTheRankInTheScale(LoRA):
    """`merge` scales by the number of directions, the call by the rank that was asked for."""

    @classmethod
    def start(cls, W, rank, key):
        return super().start(W, min(rank, *W.shape), key)

    def update(self):
        return self.alpha / len(self.lora_A) * (self.lora_B @ self.lora_A)


@wrong("ranks")
class ClampsTheRankAtTheInputs(LoRA):
    """Takes the first `rank` rows of an orthogonal matrix, of which there are `in`."""

    @classmethod
    def start(cls, W, rank, key):
        A = jnp.eye(W.shape[1], dtype=W.dtype)[:rank]
        return A, jnp.zeros((W.shape[0], rank), W.dtype)


@wrong("law")
class ReadsSquareWeightsTransposed(LoRA):
    """Takes a square weight for `(in, out)`, in the call and in `merge`."""

    def added(self, x):
        if self.base.in_features == self.base.out_features:
            A, B = self.lora_A.astype(x.dtype), self.lora_B.astype(x.dtype)
            return self.scale() * (A.T @ (B.T @ x))
        return super().added(x)

    def update(self):
        update = super().update()
        return update.T if update.shape[0] == update.shape[1] else update


@wrong("law")
class MergeTransposesSquareWeights(LoRA):
    """`merge` adds the transposed update to a square weight."""

    def update(self):
        update = super().update()
        return update.T if update.shape[0] == update.shape[1] else update


@wrong("input-derivatives")
class MergeReshapesTheTransposed(LoRA):
    """`merge` reshapes `A^T B^T` to the weight's shape instead of transposing."""

    def update(self):
        update = self.scale() * (self.lora_A.T @ self.lora_B.T)
        return update.reshape(self.base.weight.shape)


@wrong("law")
class BothReshapeTheTransposed(LoRA):
    """The call and `merge` reshape `A^T B^T` to the weight's shape."""

    def update(self):
        update = self.scale() * (self.lora_A.T @ self.lora_B.T)
        return update.reshape(self.base.weight.shape)

    def added(self, x):
        return self.update().astype(x.dtype) @ x


@wrong("law")
class ReadsTheInputBackwards(LoRA):
    """The call and `merge` read the columns of `A` from the last to the first."""

    def added(self, x):
        return super().added(x[::-1])

    def update(self):
        return super().update()[:, ::-1]


@wrong("law")
class UsesTheFirstDirectionAlone(LoRA):
    """Directions after the first have no effect in the call and in `merge`."""

    def first(self):
        is_first = jnp.arange(self.rank) == 0
        return self.lora_B * is_first[None, :].astype(self.lora_B.dtype)

    def added(self, x):
        A, B = self.lora_A.astype(x.dtype), self.first().astype(x.dtype)
        return self.scale() * (B @ (A @ x))

    def update(self):
        return self.scale() * (self.first() @ self.lora_A)


@wrong("law")
class WideLayersLoseInputs(LoRA):
    """Sees only the first `out` inputs of a layer with more inputs than outputs."""

    def masked(self):
        is_seen = jnp.arange(self.base.in_features) < self.base.out_features
        return self.lora_A * is_seen[None, :].astype(self.lora_A.dtype)

    def added(self, x):
        A, B = self.masked().astype(x.dtype), self.lora_B.astype(x.dtype)
        return self.scale() * (B @ (A @ x))

    def update(self):
        return self.scale() * (self.lora_B @ self.masked())


@wrong("law")
class TallLayersLoseOutputs(LoRA):
    """Changes only the first `in` outputs of a layer with more outputs than inputs."""

    def masked(self):
        is_changed = jnp.arange(self.base.out_features) < self.base.in_features
        return self.lora_B * is_changed[:, None].astype(self.lora_B.dtype)

    def added(self, x):
        A, B = self.lora_A.astype(x.dtype), self.masked().astype(x.dtype)
        return self.scale() * (B @ (A @ x))

    def update(self):
        return self.scale() * (self.masked() @ self.lora_A)


@wrong("merge-equals-call")
class MergeDropsTheBias(LoRA):
    """`merge` makes a layer whose bias is zero."""

    def merge(self):
        plain = super().merge()
        if plain.bias is None:
            return plain
        return with_bias(plain, jnp.zeros_like(plain.bias))


@wrong("input-derivatives")
class MergeAddsToTheBias(LoRA):
    """`merge` also adds the sum of each row to the bias."""

    def merge(self):
        plain = super().merge()
        if plain.bias is None:
            return plain
        row_sums = self.update().sum(axis=1).astype(plain.bias.dtype)
        return with_bias(plain, plain.bias + row_sums)


@wrong("merge-equals-call")
class AddsTheBiasTwice(LoRA):
    """The call adds the bias to an output that has the bias."""

    def added(self, x):
        bias = self.base.bias
        return super().added(x) if bias is None else super().added(x) + bias


@wrong("merge-equals-call")
class NeedsABias(LoRA):
    """The call fails for a layer without a bias."""

    def __call__(self, x):
        return self.base.weight @ x + self.base.bias + self.added(x)


@wrong("input-derivatives")
class ScalesTheBaseToo(LoRA):
    """The scale multiplies the output of the layer as well."""

    def __call__(self, x):
        return self.scale() * (self.base(x) + self.added(x) / self.scale())


@wrong("input-derivatives")
class BendsTheMiddle(LoRA):
    """The call puts `tanh` between the factors, as no weight can."""

    def added(self, x):
        A, B = self.lora_A.astype(x.dtype), self.lora_B.astype(x.dtype)
        return self.scale() * (B @ jnp.tanh(A @ x))


@wrong("input-derivatives")
class CallAveragesTheInputs(LoRA):
    """The call divides by the number of inputs."""

    def added(self, x):
        return super().added(x) / len(x)


@wrong("input-derivatives")
class MergeSubtracts(LoRA):
    """`merge` subtracts the update."""

    def update(self):
        return -super().update()


@wrong("input-derivatives")
class MergeClipsTheUpdate(LoRA):
    """`merge` clips the entries of the update to `[-0.5, 0.5]`."""

    def update(self):
        return jnp.clip(super().update(), -0.5, 0.5)


@wrong("input-derivatives")
class MergeRoundsTheUpdate(LoRA):
    """`merge` rounds the update to two decimals."""

    def update(self):
        return jnp.round(super().update(), 2)


@wrong("input-derivatives")
class MergeForgetsTheBase(LoRA):
    """`merge` returns the update alone."""

    def merge(self):
        return with_weight(self.base, self.update())


@wrong("input-derivatives")
class MergeForgetsTheGate(Gated):
    """`merge` adds `B A` as if every gate were one."""

    def merge(self):
        W = float_of(self.base.weight) + self.alpha / self.rank * (self.lora_B @ self.lora_A)
        return with_weight(self.base, W)


@wrong("law")
class GatesTwice(Gated):
    """Multiplies by the square of the gate, in the call and in `merge`."""

    def low_rank_update(self):
        A, B = super().low_rank_update()
        return A, B * self.gate[None, :]


@wrong("input-derivatives")
class GatesTheWrongFactor(Gated):
    """Multiplies the rows of `A` by the gate, and the columns of `B` as well, in the call."""

    def __call__(self, x):
        A, B = (factor.astype(x.dtype) for factor in self.low_rank_update())
        return self.base(x) + B @ (self.gate.astype(x.dtype) * (A @ x))


@wrong("law")
class TakesNormsOfColumns(Magnitude):
    """DoRA with the norms of the columns of a square weight."""

    @classmethod
    def norms(cls, V):
        is_square = V.shape[0] == V.shape[1]
        return super().norms(V.T if is_square else V)


@wrong("law")
class TakesNormsOfTheOldWeight(Magnitude):
    """DoRA divides by the norms of `W` instead of `W + s B A`."""

    def weight_in(self, dtype):
        W = float_of(self.base.weight)
        return ((self.magnitude / self.norms(W))[:, None] * (W + self.update())).astype(dtype)


@wrong("law")
class MergeForgetsTheNorms(Magnitude):
    """`merge` multiplies by the magnitude and does not divide by the norms."""

    def merge(self):
        W = float_of(self.base.weight)
        scale = self.magnitude / self.norms(W)
        return with_weight(self.base, scale[:, None] * (W + self.update()))


@wrong("law")
class MagnitudeScalesTheUpdateAlone(Magnitude):
    """DoRA multiplies the update by the magnitude, and leaves the weight."""

    def weight_in(self, dtype):
        scaled = self.magnitude[:, None] * self.update()
        return (float_of(self.base.weight) + scaled).astype(dtype)


@wrong("input-derivatives")
class MagnitudeScalesTheBias(Magnitude):
    """The call multiplies the bias by the magnitude as well."""

    def __call__(self, x):
        V = float_of(self.base.weight) + self.update()
        scale = (self.magnitude / self.norms(V)).astype(x.dtype)
        return scale * (self.base(x) + self.added(x))


@wrong("law")
class DivideByTheNormOfA(LoRA):
    """Normalises `A` in the call and in `merge`, which LoRA does not."""

    def unit(self):
        return self.lora_A / jnp.linalg.norm(self.lora_A)

    def added(self, x):
        A, B = self.unit().astype(x.dtype), self.lora_B.astype(x.dtype)
        return self.scale() * (B @ (A @ x))

    def update(self):
        return self.scale() * (self.lora_B @ self.unit())


@wrong("input-derivatives")
class MergeUsesTheFirstA(LoRA):
    """`merge` uses `A` as it was at the start, not as it was trained."""

    first_A: jax.Array

    def __init__(self, base, rank, alpha, *, key):
        super().__init__(base, rank, alpha, key=key)
        self.first_A = jnp.copy(self.lora_A)

    def update(self):
        return self.scale() * (self.lora_B @ self.first_A)
