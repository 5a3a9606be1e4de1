"""Adapters that say something wrong about themselves in an optional member."""

import jax.numpy as jnp
from jax.sharding import PartitionSpec
from tests.core.data_adapters import (
    DividesByTheVariance,
    Informed,
    ReadsTheValue,
    SeesOtherInputs,
    Tied,
    normal,
)
from tests.core.gated_adapters import Gated, MixesItsDirections
from tests.core.good_adapter import float_of

from jno.lora import About, LoRAWrapper, LowRankForm, Shared, Statistic
from jno_lora_zoo import LoRALinear

from ._bases import ConvLoRA, Frozen, LoRA, Magnitude, with_weight
from ._rows import Field, changed, noticed_by, trained, wrong

by_answers = noticed_by("answers")
by_calibration = noticed_by("calibration")
by_contract = noticed_by("contract")
by_gate = noticed_by("rank-gate")
by_law = noticed_by("law")
by_matrix = noticed_by("matrix")
by_reading = noticed_by("reads-like-the-layer")
by_scale = noticed_by("low-rank-scale")
by_sides = noticed_by("factor-sides")
by_specs = noticed_by("partition-specs")
by_update = noticed_by("low-rank-form")


by_update(
    "LowRankFormForgetsTheScale",
    says="not the update by which `merge",
    low_rank_form=lambda self: LowRankForm(self.lora_A, self.lora_B),
)
by_update(
    "LowRankFormScalesTwice",
    low_rank_form=lambda self: LowRankForm(self.scale() * self.lora_A, self.scale() * self.lora_B),
)
by_update(
    "LowRankFormIsSwapped",
    says=r"factors `A` \(\d, 2\) and `B` \(2, \d\)",
    low_rank_form=lambda self: LowRankForm(self.scale() * self.lora_B, self.lora_A),
)
by_update(
    "LowRankFormIsTransposed",
    low_rank_form=lambda self: LowRankForm(self.scale() * self.lora_B.T, self.lora_A.T),
)


@wrong("low-rank-form")
class LowRankFormForgetsTheGate(Gated):
    def __call__(self, x):
        A, B = (factor.astype(x.dtype) for factor in Gated.low_rank_form(self)[:2])
        return self.base(x) + B @ (A @ x)

    def merge(self):
        A, B, *_ = Gated.low_rank_form(self)
        return with_weight(self.base, float_of(self.base.weight) + B @ A)

    def low_rank_form(self):
        return LowRankForm(self.lora_A, self.alpha / self.rank * self.lora_B)


by_update(
    "LowRankFormLosesADirection",
    low_rank_form=lambda self: LowRankForm(self.lora_A[:1], self.scale() * self.lora_B[:, :1]),
)
by_update(
    "LowRankFormRaises",
    low_rank_form=lambda self: LowRankForm(self.lora_A, self.lora_A @ self.lora_B),
)
by_update(
    "LowRankFormIsAPair", low_rank_form=lambda self: (self.lora_A, self.scale() * self.lora_B)
)
by_update(
    "GainIsTheMagnitude",
    Magnitude,
    says="not the update by which `merge",
    low_rank_form=lambda self: LowRankForm(
        self.lora_A, self.scale() * self.lora_B, gain=self.magnitude
    ),
)
by_update(
    "GainScalesColumns",
    says="`gain` has the shape",
    low_rank_form=lambda self: LowRankForm(
        self.lora_A, self.scale() * self.lora_B, gain=jnp.ones(self.lora_A.shape[1])
    ),
)
by_update(
    "GainIsForgotten",
    Magnitude,
    low_rank_form=lambda self: Magnitude.low_rank_form(self)._replace(gain=None),
)


@wrong("low-rank-form", says="`shift` is not what", options={"bias": "train"})
class ShiftIsForgotten(LoRALinear):
    def low_rank_form(self):
        return super().low_rank_form()._replace(shift=None)


@wrong("low-rank-form", options={"bias": "train"})
class ShiftHasTheScale(LoRALinear):
    def low_rank_form(self):
        form = super().low_rank_form()
        return form if form.shift is None else form._replace(shift=self.scaling * form.shift)


by_update("LowRankFormIsTheProduct", low_rank_form=lambda self: self.update())
by_scale(
    "LowRankScaleIsAlpha",
    says="not the update by which `merge",
    low_rank_scale=lambda cls, rank, alpha: alpha,
)
by_scale("LowRankScaleIsInverted", low_rank_scale=lambda cls, rank, alpha: rank / alpha)
by_scale(
    "LowRankScaleForgetsTheScales", Frozen, low_rank_scale=lambda cls, rank, alpha: alpha / rank
)
by_scale("LowRankScaleOfDoRA", Magnitude, low_rank_scale=lambda cls, rank, alpha: alpha / rank)
by_scale("LowRankScaleRaises", low_rank_scale=lambda cls, rank, alpha: cls.alpha / cls.rank)


@wrong("low-rank-scale")
class LowRankScaleWithoutNames(LoRA):
    def state(self):
        return {"down": self.lora_A, "up": self.lora_B}

    @classmethod
    def from_state(cls, base, state, rank, alpha):
        named = {"lora_A": state["down"], "lora_B": state["up"]}
        return super().from_state(base, named, rank, alpha)


by_update(
    "MatrixIsTransposed",
    says=r"the shape \(6, 4\), not \(4, 6\)|matrix of the layer is \(6, 4\)",
    matrix=lambda cls, layer: float_of(layer.weight).T,
)
by_matrix("MatrixRaises", says="kernel", matrix=lambda cls, layer: layer.kernel)
by_update("MatrixIsTheBias", matrix=lambda cls, layer: layer.bias)
by_matrix("MatrixIsZero", matrix=lambda cls, layer: jnp.zeros_like(layer.weight))
by_update("MatrixOfAKernelHasAllAxes", ConvLoRA, matrix=lambda cls, layer: float_of(layer.weight))
by_update(
    "MatrixOfAKernelIsPermuted",
    ConvLoRA,
    matrix=lambda cls, layer: jnp.moveaxis(float_of(layer.weight), 1, -1).reshape(
        len(layer.weight), -1
    ),
)
by_sides(
    "SidesAreSwapped",
    says=r"`lora_B` \(4, 2\) is `A`",
    factor_sides={"lora_A": "output", "lora_B": "input"},
)
by_contract("SidesNameNoField", factor_sides={"lora_down": "input", "lora_B": "output"})
by_sides("SidesAreUnknown", factor_sides={"lora_A": "left", "lora_B": "output"})
by_gate(
    "RankAxesAreSwapped",
    Gated,
    says=r"gives axis 1 of 'lora_A', whose shape is \(2, 6\)",
    rank_axes={"lora_A": 1, "lora_B": 0},
)
by_gate("RankAxesAreNegative", Gated, rank_axes={"lora_A": 0, "lora_B": -1})
by_gate(
    "RankAxesForgetB",
    Gated,
    says="'lora_B' grows with the rank along axis",
    rank_axes={"lora_A": 0},
)
changed(
    "parameter-count",
    "GateIsNotTrained",
    Gated,
    adapter_fields=("lora_A", "lora_B"),
    rank_axes={"lora_A": 0, "lora_B": 1},
)


by_gate(
    "GateIsAMatrix",
    Gated,
    says=r"'gate' of one layer has the shape \(2, 1\), not \(r,\)",
    gate=Field(lambda self, base, key: jnp.zeros((self.rank, 1), self.gate.dtype)),
    low_rank_form=lambda self: LowRankForm(self.lora_A, self.lora_B * self.gate[:, 0][None, :]),
)
wrong("rank-gate")(MixesItsDirections)
by_gate(
    "GateHasNoEffect",
    Gated,
    says="does not change if an entry of the gate",
    low_rank_form=lambda self: LowRankForm(self.lora_A, 0 * self.lora_B * self.gate[None, :]),
)


by_gate(
    "DirectionHasNoEffect",
    Gated,
    says="has no effect, though its gate is open",
    rank_axes={**Gated.rank_axes, "extra": 0},
    extra=trained(lambda self, base, key: jnp.zeros(self.rank)),
)


@wrong("law")
class GateLeaksOneDirection(Gated):
    def __init__(self, base, rank, alpha, *, key):
        super().__init__(base, rank, alpha, key=key)
        self.lora_B = self.lora_B.at[:, -1].set(0)

    def low_rank_form(self):
        open_gate = self.gate.at[-1].set(1)
        return LowRankForm(self.lora_A, self.alpha / self.rank * self.lora_B * open_gate[None, :])


by_answers(
    "WhyNotRaises",
    says="`why_not` raises for None",
    why_not=lambda cls, leaf: f"the weight has {leaf.weight.ndim} axes",
)
by_answers("WhyNotIsABool", why_not=lambda cls, leaf: not cls.applies_to(leaf))
by_answers(
    "WhyNotRejectsItsLayer",
    says="'the layer is too small'",
    why_not=lambda cls, leaf: "the layer is too small",
)
by_answers("SaysStateful", says=r"`is_stateful\(\)` is True", is_stateful=lambda self: True)
by_answers("StatefulIsAnArray", is_stateful=lambda self: jnp.any(self.lora_B != 0))
by_answers(
    "SaysNothingAboutStacks",
    says="`stack_ndim` is 0, not 1: one adapter would be shared",
    stack_ndim=LoRAWrapper.stack_ndim.__func__,
)
by_specs(
    "SpecsNameNoField",
    says="'lora_down', which is not a field",
    partition_specs=lambda self: {"lora_down": PartitionSpec()},
)
by_specs(
    "SpecsHaveTooManyAxes",
    partition_specs=lambda self: {"lora_A": PartitionSpec(None, None, "devices")},
)
changed(
    "sharding",
    "SpecsNameAnotherMesh",
    survives="the check is advice",
    partition_specs=lambda self: {"lora_A": PartitionSpec(None, "an axis of another mesh")},
)
by_specs("SpecsRaise", partition_specs=lambda self: {"lora_A": self.base.spec})
by_reading("StackNdimRaises", stack_ndim=lambda cls, leaf: leaf.depth)
by_reading("StackNdimIsTooLarge", stack_ndim=lambda cls, leaf: leaf.weight.ndim - 1)


by_law("SharedIsInADict", Tied, lora_A=Field(lambda self, base, key: {"first": self.lora_A}))
wrong("shared-arrays")(ReadsTheValue)


@wrong("shared-arrays", says="Two layers of different widths fail")
class SharedIsNotSliced(Tied):
    def low_rank_form(self):
        A = self.lora_A.array.astype(self.lora_B.dtype)
        return LowRankForm(A, self.alpha / self.rank * self.lora_B)


# Nothing is shared.
changed(
    "shared-arrays",
    "SharedIsNamedByTheLayer",
    Tied,
    lora_A=Field(lambda self, base, key: Shared(f"A-{id(base)}", self.lora_A.shape, normal)),
)


def statistic(name, left):
    return type(name.title(), (Statistic,), {"name": name, "left": staticmethod(left)})


def largest(V):
    norms = jnp.linalg.norm(V, axis=1, keepdims=True)
    return V * (norms == norms.max())


class Measured(Informed):
    """A correct adapter, but for the statistic of a subclass."""

    def __init__(self, base, rank, alpha, *, key, statistics):
        (statistic,) = self.needs
        covariance = statistics[statistic.name]
        super().__init__(base, rank, alpha, key=key, statistics={"input_covariance": covariance})


by_calibration(
    "StatisticDividesTwice",
    Measured,
    says="depends on how rows are batched",
    needs=(statistic("mean_over_the_batch", lambda V: V / len(V)),),
)
by_calibration(
    "StatisticCentresBatches",
    Measured,
    needs=(statistic("centred_rows", lambda V: V - V.mean(axis=0, keepdims=True)),),
)
by_law("StatisticTakesTheLargest", Measured, needs=(statistic("largest_row", largest),))
by_contract("NeedsAnUnknownStatistic", Informed, needs=("input_variance",))
by_contract("NeedsAText", Informed, needs="input_covariance")


@wrong("law")
class NeedsWithoutAMatrix(LoRA):
    needs = ("input_mean",)

    @classmethod
    def matrix(cls, layer):
        return None

    def __init__(self, base, rank, alpha, *, key, statistics):
        super().__init__(base, rank, alpha, key=key)


@wrong("poor-statistics")
class DividesByTheMean(Informed):
    needs = ("input_mean", "input_covariance")

    def __init__(self, base, rank, alpha, *, key, statistics):
        super().__init__(base, rank, alpha, key=key, statistics=statistics)
        mean = statistics["input_mean"].astype(self.lora_A.dtype)
        self.lora_A = self.lora_A / mean[None, :]


wrong("poor-statistics")(DividesByTheVariance)
wrong("calibration")(SeesOtherInputs)
by_contract("VariantIsEmpty", variant="")
by_contract("AutoIsAText", auto="no")
by_contract("AboutIsAText", about="a low-rank update")
by_contract(
    "MergeableIsAText", says="`mergeable` must be True or False, but is 'yes'", mergeable="yes"
)


@wrong("contract")
class MatrixNeedsAnInstance(LoRA):
    def matrix(self, layer):  # pyright: ignore
        return layer.weight


changed(
    None,
    "FormulaIsWrong",
    survives="the formula is a text for listings, which the kit cannot read",
    about=About(formula="r (in + out) + r r"),
)
changed(
    None,
    "PaperIsAnother",
    survives="only a reader of the paper can tell",
    about=About(paper="1706.03762"),
)


@wrong("calibration")
class InputsOfAKernelAreRows(ConvLoRA):
    needs = ("input_covariance",)

    def __init__(self, base, rank, alpha, *, key, statistics):
        super().__init__(base, rank, alpha, key=key)


by_calibration(
    "OutputsOfLosesAnOutput",
    Informed,
    needs=("input_covariance", "output_covariance"),
    outputs_of=lambda cls, layer, y: Informed.outputs_of(layer, y)[:, :-1],
)
