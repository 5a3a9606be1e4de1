"""Adapters that train the wrong arrays, or with the wrong gradients."""

import equinox as eqx
import jax
import jax.numpy as jnp
from tests.core.gated_adapters import Gated
from tests.core.good_adapter import float_of

from ._bases import Frozen, LoRA, with_weight
from ._rows import wrong


@wrong("contract")
class TrainsItsBase(LoRA):
    """`adapter_fields` names the frozen layer."""

    adapter_fields = ("base", "lora_A", "lora_B")


@wrong("contract")
class ForgetsTheComma(LoRA):
    """`adapter_fields` is a text instead of a tuple."""

    adapter_fields = "lora_A"  # pyright: ignore


@wrong("contract")
class TrainsAStaticField(LoRA):
    """`adapter_fields` names a static field."""

    adapter_fields = ("lora_A", "lora_B", "alpha")


@wrong("parameter-count")
class ForgetsB(LoRA):
    """`adapter_fields` names `A` alone, so that `B` stays at zero."""

    adapter_fields = ("lora_A",)


@wrong("parameter-count")
class ForgetsA(LoRA):
    """`adapter_fields` names `B` alone, where the documented number counts both."""

    adapter_fields = ("lora_B",)


@wrong("parameter-count")
class TrainsTheFrozenScales(Frozen):
    """`adapter_fields` names scales that the method freezes."""

    adapter_fields = ("lora_A", "lora_B", "scales")


@wrong("law")
class TrainsACopyOfTheWeight(LoRA):
    """A full copy of the weight is trained beside the factors."""

    adapter_fields = ("lora_A", "lora_B", "copied")
    copied: jax.Array

    def __init__(self, base, rank, alpha, *, key):
        super().__init__(base, rank, alpha, key=key)
        self.copied = jnp.copy(float_of(base.weight))

    def __call__(self, x):
        return with_weight(self.base, self.copied + self.update())(x)

    def merge(self):
        return with_weight(self.base, self.copied + self.update())


@wrong("parameter-count")
class NeverUsesAField(LoRA):
    """A trained field has no effect."""

    adapter_fields = ("lora_A", "lora_B", "shift")
    shift: jax.Array

    def __init__(self, base, rank, alpha, *, key):
        super().__init__(base, rank, alpha, key=key)
        self.shift = jnp.zeros(len(self.lora_B), self.lora_B.dtype)


@wrong("trainable-fields")
class TrainsAPythonNumber(LoRA):
    """A trained field holds a Python float."""

    adapter_fields = ("lora_A", "lora_B", "gain")
    gain: float

    def __init__(self, base, rank, alpha, *, key):
        super().__init__(base, rank, alpha, key=key)
        self.gain = 1.0


@wrong("trainable-fields")
class TrainsABooleanMask(LoRA):
    """A trained field holds a mask of bools."""

    adapter_fields = ("lora_A", "lora_B", "mask")
    mask: jax.Array

    def __init__(self, base, rank, alpha, *, key):
        super().__init__(base, rank, alpha, key=key)
        self.mask = jnp.ones(base.weight.shape, bool)

    def update(self):
        return super().update() * self.mask.astype(self.lora_A.dtype)


@wrong("contract")
class NamesAMissingOptionalField(LoRA):
    """`optional_fields` names a field that the class lacks."""

    optional_fields = ("gain",)


@wrong(None, survives="a frozen field of zeros may be meant")
class OptionalFieldIsNotNamed(LoRA):
    """A field that should train is in neither `adapter_fields` nor `optional_fields`."""

    shift: jax.Array

    def __init__(self, base, rank, alpha, *, key):
        super().__init__(base, rank, alpha, key=key)
        self.shift = jnp.zeros(len(self.lora_B), self.lora_B.dtype)

    def added(self, x):
        return super().added(x) + self.shift.astype(x.dtype)

    def merge(self):
        plain = super().merge()
        if plain.bias is None:
            return plain
        shifted = plain.bias + self.shift.astype(plain.bias.dtype)
        return eqx.tree_at(lambda node: node.bias, plain, shifted)


@wrong("gradients")
class StopsB(LoRA):
    """The call and `merge` stop the gradient of `B`."""

    def added(self, x):
        A, B = self.lora_A.astype(x.dtype), jax.lax.stop_gradient(self.lora_B).astype(x.dtype)
        return self.scale() * (B @ (A @ x))

    def update(self):
        return self.scale() * (jax.lax.stop_gradient(self.lora_B) @ self.lora_A)


@wrong("gradients")
class RoundsA(LoRA):
    """Rounds `A` to a grid in the call and in `merge`, whose gradient is zero."""

    def rounded(self):
        return jnp.round(8 * self.lora_A) / 8

    def added(self, x):
        A, B = self.rounded().astype(x.dtype), self.lora_B.astype(x.dtype)
        return self.scale() * (B @ (A @ x))

    def update(self):
        return self.scale() * (self.lora_B @ self.rounded())


@jax.custom_jvp
def doubled_gradient(array):
    return array


@doubled_gradient.defjvp
def _doubled_gradient_jvp(primals, tangents):
    return primals[0], 2 * tangents[0]


@wrong("residual-gradients")
class DoublesGradients(LoRA):
    """A derivative rule in the call doubles the gradient of `B`."""

    def added(self, x):
        A, B = self.lora_A.astype(x.dtype), doubled_gradient(self.lora_B).astype(x.dtype)
        return self.scale() * (B @ (A @ x))


@wrong("input-derivatives")
class StopsTheFirstProduct(LoRA):
    """The call stops the gradient of `A x`, so that neither `A` nor the input gets this part."""

    def added(self, x):
        A, B = self.lora_A.astype(x.dtype), self.lora_B.astype(x.dtype)
        return self.scale() * (B @ jax.lax.stop_gradient(A @ x))


@wrong("input-derivatives")
class StopsTheWholeUpdate(LoRA):
    """The call stops the gradient of all that it adds."""

    def added(self, x):
        return jax.lax.stop_gradient(super().added(x))


@wrong("input-derivatives")
class StopsTheBase(LoRA):
    """The call stops the gradient of the layer's output, so layers before it do not learn."""

    def __call__(self, x):
        return jax.lax.stop_gradient(self.base(x)) + self.added(x)


@wrong("residual-gradients")
class HasDirectionsWithoutGradient(LoRA):
    """Only the first row of `A` gets a gradient."""

    def partly(self):
        is_first = (jnp.arange(self.rank) == 0)[:, None]
        return jnp.where(is_first, self.lora_A, jax.lax.stop_gradient(self.lora_A))

    def added(self, x):
        A, B = self.partly().astype(x.dtype), self.lora_B.astype(x.dtype)
        return self.scale() * (B @ (A @ x))


@wrong("penalty")
class PenaltyIsAVector(Gated):
    """The penalty is one number for each direction."""

    def penalty(self):
        return jnp.sum(self.lora_A**2, axis=1)


@wrong("penalty")
class PenaltyIsConstant(Gated):
    """The penalty depends on the rank alone, so it moves nothing."""

    def penalty(self):
        return jnp.asarray(float(self.rank))


@wrong("penalty")
class PenaltyIsNaNAtTheStart(Gated):
    """The penalty is a norm of the gate, whose gradient at the start is NaN."""

    def penalty(self):
        return jnp.sqrt(jnp.sum(self.gate**2))


@wrong("penalty")
class PenaltyDividesByTheGate(Gated):
    """The penalty divides by the gate, which is zero at the start."""

    def penalty(self):
        return jnp.sum(self.lora_A**2) / jnp.sum(self.gate**2)


@wrong("penalty")
class PenaltyReadsPython(Gated):
    """The penalty is a Python float of the values, which no compiled step can compute."""

    def penalty(self):
        return jnp.asarray(float(jnp.sum(self.lora_A**2)))


@wrong("penalty")
class PenaltyOverflows(Gated):
    """The penalty overflows: it is the exponential of a sum of squares."""

    def penalty(self):
        return jnp.exp(100 * jnp.sum(self.lora_A**2))
