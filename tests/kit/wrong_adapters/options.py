"""Adapters whose constructor ignores, loses or keeps an argument."""

import equinox as eqx
import jax
import jax.numpy as jnp

from ._bases import LoRA, lora_law, numbers
from ._rows import wrong


class Gained(LoRA):
    """`W + gain alpha / rank B A`, with an option `gain`, in an array: a correct adapter."""

    gain: jax.Array

    @classmethod
    def low_rank_scale(cls, rank, alpha):
        return None

    def low_rank_update(self):
        return self.lora_A, self.lora_B * self.scale()

    def __init__(self, base, rank, alpha, *, key, gain=1.0):
        super().__init__(base, rank, alpha, key=key)
        self.gain = jnp.asarray(gain, self.lora_A.dtype)

    def scale(self):
        return self.alpha / self.rank * self.gain

    def added(self, x):
        A, B = self.lora_A.astype(x.dtype), (self.scale() * self.lora_B).astype(x.dtype)
        return B @ (A @ x)


def gained_law(adapter):
    """The law with the gain of the case."""
    W = numbers(adapter.base.weight)
    return W + 3 * (lora_law(adapter, adapter.rank, adapter.alpha) - W)


@wrong("law", options={"gain": 3.0}, law=gained_law)
class IgnoresItsOption(Gained):
    """The constructor ignores the option."""

    def __init__(self, base, rank, alpha, *, key, gain=1.0):
        super().__init__(base, rank, alpha, key=key)


@wrong("state-round-trip", options={"gain": 3.0}, law=gained_law)
class LosesItsOptionInAFile(Gained):
    """The option is in a static field, which a file does not hold."""

    gain: float = eqx.field(static=True)

    def __init__(self, base, rank, alpha, *, key, gain=1.0):
        super().__init__(base, rank, alpha, key=key)
        self.gain = gain

    def added(self, x):
        return LoRA.added(self, x)


@wrong("key-forms")
class ChangesItsDefault(LoRA):
    """The default of an option is a list, to which each constructor appends."""

    offset: jax.Array

    def __init__(self, base, rank, alpha, *, key, offsets=[]):  # noqa: B006
        super().__init__(base, rank, alpha, key=key)
        offsets.append(1.0)
        self.offset = jnp.asarray(float(len(offsets)))


@wrong("contract", options={"scales": [1.0]})
class ChangesItsOption(LoRA):
    """The constructor appends to the list that it was given."""

    scales: jax.Array

    def __init__(self, base, rank, alpha, *, key, scales):
        super().__init__(base, rank, alpha, key=key)
        scales.append(2.0)
        self.scales = jnp.asarray(scales)


@wrong("parameter-count")
class IgnoresTheRank(LoRA):
    """The factors always have the rank 1."""

    @classmethod
    def start(cls, W, rank, key):
        return super().start(W, 1, key)


@wrong("parameter-count")
class DoublesTheRank(LoRA):
    """The factors have twice the rank."""

    @classmethod
    def start(cls, W, rank, key):
        return super().start(W, 2 * rank, key)


@wrong("state-round-trip")
class StoresAnotherRank(LoRA):
    """The field `rank` holds the number of inputs; the scale uses the factors' shape."""

    def __init__(self, base, rank, alpha, *, key):
        super().__init__(base, rank, alpha, key=key)
        self.rank = base.in_features

    def scale(self):
        return self.alpha / len(self.lora_A)


@wrong("law")
class StoresTheScaleAsAlpha(LoRA):
    """The field `alpha` holds `alpha / rank`, which a restored adapter divides again."""

    def __init__(self, base, rank, alpha, *, key):
        super().__init__(base, rank, alpha, key=key)
        self.alpha = alpha / rank

    def scale(self):
        return self.alpha


@wrong("answers")
class IgnoresAlpha(LoRA):
    """The field `alpha` is always the rank, so the scale is one."""

    def __init__(self, base, rank, alpha, *, key):
        super().__init__(base, rank, rank, key=key)


@wrong("state-round-trip")
class SwapsRankAndAlpha(LoRA):
    """The constructor hands rank and alpha on in the wrong order."""

    def __init__(self, base, rank, alpha, *, key):
        super().__init__(base, rank, alpha, key=key)
        self.rank, self.alpha = alpha, rank


@wrong("trainable-fields")
class StoresAlphaAsAnArray(LoRA):
    """The static field `alpha` holds an array."""

    def __init__(self, base, rank, alpha, *, key):
        super().__init__(base, rank, alpha, key=key)
        self.alpha = jnp.asarray(alpha)  # pyright: ignore


@wrong("contract")
class TakesNoKey(LoRA):
    """The constructor does not take `key`."""

    def __init__(self, base, rank, alpha):
        super().__init__(base, rank, alpha, key=jax.random.key(0))


@wrong("contract")
class NeedsAnOption(LoRA):
    """The constructor has an option without a default."""

    def __init__(self, base, rank, alpha, *, key, dropout):
        super().__init__(base, rank, alpha, key=key)


@wrong("ranks")
class RefusesRankOne(LoRA):
    """The constructor reshapes to pairs of directions, and fails at odd ranks."""

    @classmethod
    def start(cls, W, rank, key):
        A, B = super().start(W, rank, key)
        return A.reshape(2, rank // 2, -1).reshape(rank, -1), B


@wrong("ranks")
class FailsAboveTheSmallestSide(LoRA):
    """The constructor fails with an index error of a library at a rank larger than the layer."""

    @classmethod
    def start(cls, W, rank, key):
        _, _, V = jnp.linalg.svd(W, full_matrices=True)
        A = jnp.concatenate([V[i : i + 1] for i in range(rank)])
        return A.reshape(rank, -1), jnp.zeros((W.shape[0], rank), W.dtype)
