"""Adapters that say something wrong about themselves in an optional member."""

import jax.numpy as jnp
from jax.sharding import PartitionSpec
from tests.core.data_adapters import Informed, Tied, normal
from tests.core.gated_adapters import Gated
from tests.core.good_adapter import float_of

from jno.lora import About, Shared, Statistic

from ._bases import ConvLoRA, Frozen, LoRA, Magnitude, with_weight
from ._rows import wrong


@wrong("low-rank-update")
class LowRankUpdateForgetsTheScale(LoRA):
    """`low_rank_update` gives the factors without the scale."""

    def low_rank_update(self):
        return self.lora_A, self.lora_B


@wrong("low-rank-update")
class LowRankUpdateScalesTwice(LoRA):
    """`low_rank_update` scales both factors."""

    def low_rank_update(self):
        return self.scale() * self.lora_A, self.scale() * self.lora_B


@wrong("low-rank-update")
class LowRankUpdateIsSwapped(LoRA):
    """`low_rank_update` gives `(B, A)`."""

    def low_rank_update(self):
        return self.scale() * self.lora_B, self.lora_A


@wrong("low-rank-update")
class LowRankUpdateIsTransposed(LoRA):
    """`low_rank_update` gives `(B^T, A^T)`, which has the right shapes for square layers."""

    def low_rank_update(self):
        return self.scale() * self.lora_B.T, self.lora_A.T


@wrong("low-rank-update")
class LowRankUpdateForgetsTheGate(Gated):
    """`low_rank_update` gives the factors without the gate."""

    def __call__(self, x):
        A, B = (factor.astype(x.dtype) for factor in Gated.low_rank_update(self))
        return self.base(x) + B @ (A @ x)

    def merge(self):
        A, B = Gated.low_rank_update(self)
        return with_weight(self.base, float_of(self.base.weight) + B @ A)

    def low_rank_update(self):
        return self.lora_A, self.alpha / self.rank * self.lora_B


@wrong("low-rank-update")
class LowRankUpdateLosesADirection(LoRA):
    """`low_rank_update` gives the first direction alone."""

    def low_rank_update(self):
        return self.lora_A[:1], self.scale() * self.lora_B[:, :1]


@wrong("low-rank-update")
class LowRankUpdateOfDoRA(Magnitude):
    """DoRA claims that its update is `s B A`, without the magnitude."""

    def low_rank_update(self):
        return self.lora_A, self.scale() * self.lora_B


@wrong("low-rank-update")
class LowRankUpdateRaises(LoRA):
    """`low_rank_update` fails with an error of shapes."""

    def low_rank_update(self):
        return self.lora_A, self.lora_A @ self.lora_B


@wrong("low-rank-update")
class LowRankUpdateIsTheProduct(LoRA):
    """`low_rank_update` gives the whole matrix."""

    def low_rank_update(self):
        return self.update()


@wrong("low-rank-scale")
class LowRankScaleIsAlpha(LoRA):
    """`low_rank_scale` gives alpha instead of `alpha / rank`."""

    @classmethod
    def low_rank_scale(cls, rank, alpha):
        return alpha


@wrong("low-rank-scale")
class LowRankScaleIsInverted(LoRA):
    """`low_rank_scale` gives `rank / alpha`."""

    @classmethod
    def low_rank_scale(cls, rank, alpha):
        return rank / alpha


@wrong("low-rank-scale")
class LowRankScaleForgetsTheScales(Frozen):
    """`low_rank_scale` claims that the update is `s B A`, without the frozen scales."""

    @classmethod
    def low_rank_scale(cls, rank, alpha):
        return alpha / rank


@wrong("low-rank-scale")
class LowRankScaleOfDoRA(Magnitude):
    """`low_rank_scale` claims that DoRA's whole effect is `s B A`."""

    @classmethod
    def low_rank_scale(cls, rank, alpha):
        return alpha / rank


@wrong("low-rank-scale")
class LowRankScaleRaises(LoRA):
    """`low_rank_scale` reads the instance, but it is a classmethod."""

    @classmethod
    def low_rank_scale(cls, rank, alpha):
        return cls.alpha / cls.rank


@wrong("low-rank-scale")
class LowRankScaleWithoutNames(LoRA):
    """`low_rank_scale` is given, and `state` names the factors `down` and `up`."""

    def state(self):
        return {"down": self.lora_A, "up": self.lora_B}

    @classmethod
    def from_state(cls, base, state, rank, alpha):
        named = {"lora_A": state["down"], "lora_B": state["up"]}
        return super().from_state(base, named, rank, alpha)


@wrong("low-rank-update")
class MatrixIsTransposed(LoRA):
    """`matrix` gives `(in, out)`."""

    @classmethod
    def matrix(cls, layer):
        return float_of(layer.weight).T


@wrong("matrix")
class MatrixRaises(LoRA):
    """`matrix` reads a field that the layer lacks."""

    @classmethod
    def matrix(cls, layer):
        return layer.kernel


@wrong("low-rank-update")
class MatrixIsTheBias(LoRA):
    """`matrix` gives the bias."""

    @classmethod
    def matrix(cls, layer):
        return layer.bias


@wrong("matrix")
class MatrixIsZero(LoRA):
    """`matrix` gives zeros of the right shape."""

    @classmethod
    def matrix(cls, layer):
        return jnp.zeros_like(layer.weight)


@wrong("low-rank-update")
class MatrixOfAKernelHasAllAxes(ConvLoRA):
    """`matrix` gives a kernel with all of its axes."""

    @classmethod
    def matrix(cls, layer):
        return float_of(layer.weight)


@wrong("low-rank-update")
class MatrixOfAKernelIsPermuted(ConvLoRA):
    """`matrix` puts the axes of a kernel behind each other in another order than the factors."""

    @classmethod
    def matrix(cls, layer):
        return jnp.moveaxis(float_of(layer.weight), 1, -1).reshape(len(layer.weight), -1)


@wrong("factor-sides")
class SidesAreSwapped(LoRA):
    """`factor_sides` calls `A` the output's factor."""

    factor_sides = {"lora_A": "output", "lora_B": "input"}  # noqa: RUF012


@wrong("contract")
class SidesNameNoField(LoRA):
    """`factor_sides` names a field that the class lacks."""

    factor_sides = {"lora_down": "input", "lora_B": "output"}  # noqa: RUF012


@wrong("factor-sides")
class SidesAreUnknown(LoRA):
    """`factor_sides` gives "left" for a side."""

    factor_sides = {"lora_A": "left", "lora_B": "output"}  # noqa: RUF012


@wrong("rank-gate")
class RankAxesAreSwapped(Gated):
    """`rank_axes` gives the inputs' axis of `A` and the outputs' axis of `B`."""

    rank_axes = {"lora_A": 1, "lora_B": 0}  # noqa: RUF012


@wrong("rank-gate")
class RankAxesAreNegative(Gated):
    """`rank_axes` counts an axis from the end."""

    rank_axes = {"lora_A": 0, "lora_B": -1}  # noqa: RUF012


@wrong("rank-gate")
class RankAxesForgetB(Gated):
    """`rank_axes` does not name `B`, so `shrink` would leave its columns."""

    rank_axes = {"lora_A": 0}  # noqa: RUF012


@wrong("parameter-count")
class GateIsNotTrained(Gated):
    """`rank_gate` names a field that does not train."""

    adapter_fields = ("lora_A", "lora_B")
    rank_axes = {"lora_A": 0, "lora_B": 1}  # noqa: RUF012


@wrong("rank-gate")
class GateIsAMatrix(Gated):
    """The gate has a column for each output."""

    def __init__(self, base, rank, alpha, *, key):
        super().__init__(base, rank, alpha, key=key)
        self.gate = jnp.zeros((rank, 1), self.gate.dtype)

    def low_rank_update(self):
        return self.lora_A, self.alpha / self.rank * self.lora_B * self.gate[:, 0][None, :]


@wrong("law")
class GateLeaksOneDirection(Gated):
    """The last direction acts whether its gate is open or not."""

    def __init__(self, base, rank, alpha, *, key):
        super().__init__(base, rank, alpha, key=key)
        self.lora_B = self.lora_B.at[:, -1].set(0)

    def low_rank_update(self):
        open_gate = self.gate.at[-1].set(1)
        return self.lora_A, self.alpha / self.rank * self.lora_B * open_gate[None, :]


@wrong("answers")
class WhyNotRaises(LoRA):
    """`why_not` reads the weight of every node of a model."""

    @classmethod
    def why_not(cls, leaf):
        return f"the weight has {leaf.weight.ndim} axes"


@wrong("answers")
class WhyNotIsABool(LoRA):
    """`why_not` answers `True` or `False` instead of a reason."""

    @classmethod
    def why_not(cls, leaf):
        return not cls.applies_to(leaf)


@wrong("answers")
class WhyNotRejectsItsLayer(LoRA):
    """`why_not` gives a reason for a layer that `applies_to` claims."""

    @classmethod
    def why_not(cls, leaf):
        return "the layer is too small"


@wrong("answers")
class SaysStateful(LoRA):
    """`is_stateful` is `True`, so `eqx.nn.Sequential` hands a state to a call that takes none."""

    def is_stateful(self):
        return True


@wrong("answers")
class StatefulIsAnArray(LoRA):
    """`is_stateful` answers with an array."""

    def is_stateful(self):
        return jnp.any(self.lora_B != 0)


@wrong("partition-specs")
class SpecsNameNoField(LoRA):
    """`partition_specs` names a field that the class lacks."""

    def partition_specs(self):
        return {"lora_down": PartitionSpec()}


@wrong("partition-specs")
class SpecsHaveTooManyAxes(LoRA):
    """`partition_specs` has a spec of three axes for a matrix."""

    def partition_specs(self):
        return {"lora_A": PartitionSpec(None, None, "devices")}


@wrong("partition-specs")
class SpecsRaise(LoRA):
    """`partition_specs` reads a mesh from a layer's attribute that does not exist."""

    def partition_specs(self):
        return {"lora_A": self.base.spec}


@wrong("reads-like-the-layer")
class StackNdimRaises(LoRA):
    """`stack_ndim` reads an attribute that the layer lacks."""

    @classmethod
    def stack_ndim(cls, leaf):
        return leaf.depth


@wrong("reads-like-the-layer")
class StackNdimIsTooLarge(LoRA):
    """`stack_ndim` counts the outputs' axis as a stack's."""

    @classmethod
    def stack_ndim(cls, leaf):
        return leaf.weight.ndim - 1


@wrong("law")
class SharedIsInADict(Tied):
    """A `Shared` is in a dict, where resolving does not find the array."""

    adapter_fields = ("lora_A", "lora_B")

    def __init__(self, base, rank, alpha, *, key):
        super().__init__(base, rank, alpha, key=key)
        self.lora_A = {"first": self.lora_A}


@wrong("shared-arrays")
class SharedIsNotSliced(Tied):
    """Reads the whole shared array, which is larger than this layer if another layer is wider."""

    def low_rank_update(self):
        A = self.lora_A.array.astype(self.lora_B.dtype)
        return A, self.alpha / self.rank * self.lora_B


@wrong("shared-arrays")
class SharedIsNamedByTheLayer(Tied):
    """The name of the shared array holds the layer's identity, so nothing is shared."""

    def __init__(self, base, rank, alpha, *, key):
        super().__init__(base, rank, alpha, key=key)
        self.lora_A = Shared(f"A-{id(base)}", (rank, base.weight.shape[1]), normal)


class MeanOverTheBatch(Statistic):
    """Divides the rows by their number, so that the mean does so twice."""

    name = "mean_over_the_batch"

    @staticmethod
    def left(V):
        return V / len(V)


class CentredRows(Statistic):
    """Subtracts the mean of the batch from each row."""

    name = "centred_rows"

    @staticmethod
    def left(V):
        return V - V.mean(axis=0, keepdims=True)


class LargestRow(Statistic):
    """Keeps the largest row of a batch alone."""

    name = "largest_row"

    @staticmethod
    def left(V):
        return V * (jnp.linalg.norm(V, axis=1) == jnp.linalg.norm(V, axis=1).max())[:, None]


class Measured(Informed):
    """A correct adapter, but for the statistic of a subclass."""

    def __init__(self, base, rank, alpha, *, key, statistics):
        (statistic,) = self.needs
        covariance = statistics[statistic.name]
        super().__init__(base, rank, alpha, key=key, statistics={"input_covariance": covariance})


@wrong("calibration")
class StatisticDividesTwice(Measured):
    """The statistic depends on the batch size: it divides by the number of rows itself."""

    needs = (MeanOverTheBatch,)


@wrong("calibration")
class StatisticCentresBatches(Measured):
    """The statistic depends on the batches: it subtracts the mean of each."""

    needs = (CentredRows,)


@wrong("law")
class StatisticTakesTheLargest(Measured):
    """The statistic depends on the batches: it takes the largest row of each."""

    needs = (LargestRow,)


@wrong("contract")
class NeedsAnUnknownStatistic(Informed):
    """`needs` names a statistic that does not exist."""

    needs = ("input_variance",)


@wrong("contract")
class NeedsAText(Informed):
    """`needs` is a text instead of a tuple."""

    needs = "input_covariance"  # pyright: ignore


@wrong("law")
class NeedsWithoutAMatrix(LoRA):
    """The class has `needs`, and `matrix` gives `None`."""

    needs = ("input_mean",)

    @classmethod
    def matrix(cls, layer):
        return None

    def __init__(self, base, rank, alpha, *, key, statistics):
        super().__init__(base, rank, alpha, key=key)


@wrong("poor-statistics")
class DividesByTheMean(Informed):
    """The start divides by the inputs' mean, which is zero for a layer that sees zeros."""

    needs = ("input_mean", "input_covariance")

    def __init__(self, base, rank, alpha, *, key, statistics):
        super().__init__(base, rank, alpha, key=key, statistics=statistics)
        mean = statistics["input_mean"].astype(self.lora_A.dtype)
        self.lora_A = self.lora_A / mean[None, :]


@wrong("contract")
class VariantIsEmpty(LoRA):
    """`variant` is an empty text."""

    variant = ""


@wrong("contract")
class PaperIsEmpty(LoRA):
    """`paper` is an empty text."""

    about = About(paper="")


@wrong("contract")
class AutoIsAText(LoRA):
    """`auto` is the text "no", which is true."""

    auto = "no"  # pyright: ignore


@wrong("contract")
class FamilyIsEmpty(LoRA):
    """`family` is an empty text."""

    about = About(family="")


@wrong("contract")
class AboutIsAText(LoRA):
    """`about` is a text instead of an `About`."""

    about = "a low-rank update"  # pyright: ignore


@wrong("contract")
class MergeableIsAText(LoRA):
    """`mergeable` is a text."""

    mergeable = "yes"  # pyright: ignore


@wrong("contract")
class MatrixNeedsAnInstance(LoRA):
    """`matrix` is not a classmethod."""

    def matrix(self, layer):  # pyright: ignore
        return layer.weight


@wrong(None, survives="the formula is a text for listings, which the kit cannot read")
class FormulaIsWrong(LoRA):
    """`formula` says that a third factor trains."""

    about = About(formula="r (in + out) + r r")


@wrong(None, survives="only a reader of the paper can tell")
class PaperIsAnother(LoRA):
    """`paper` has the number of another paper."""

    about = About(paper="1706.03762")


@wrong("penalty")
class PenaltyIsAMethodOfTwo(Gated):
    """`penalty` takes an argument, which nobody gives."""

    def penalty(self, weight):  # pyright: ignore
        return weight * jnp.sum(self.lora_A**2)


@wrong("calibration")
class InputsOfAKernelAreRows(ConvLoRA):
    """`inputs_of` takes the last axis of a convolution's input, as for a linear layer."""

    needs = ("input_covariance",)

    def __init__(self, base, rank, alpha, *, key, statistics):
        super().__init__(base, rank, alpha, key=key)


@wrong("calibration")
class OutputsOfLosesAnOutput(Informed):
    """`outputs_of` leaves out the last output."""

    needs = ("input_covariance", "output_covariance")

    @classmethod
    def outputs_of(cls, layer, y):
        return super().outputs_of(layer, y)[:, :-1]
