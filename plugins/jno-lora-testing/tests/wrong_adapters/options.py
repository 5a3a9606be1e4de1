"""Adapters whose constructor ignores, loses or keeps an argument."""

import equinox as eqx
import jax
import jax.numpy as jnp

from ._bases import LoRA, lora_law, numbers
from ._rows import Field, changed, noticed_by, wrong

by_count = noticed_by("parameter-count")


class Gained(LoRA):
    """`W + gain alpha / rank B A`, with an option `gain`, in an array: a correct adapter."""

    gain: jax.Array

    @classmethod
    def low_rank_scale(cls, rank, alpha):
        return None

    def __init__(self, base, rank, alpha, *, key, gain=1.0):
        super().__init__(base, rank, alpha, key=key)
        self.gain = jnp.asarray(gain, self.lora_A.dtype)

    def factors(self):
        return self.lora_A, self.gain * self.lora_B


def gained_law(adapter):
    W = numbers(adapter.base.weight)
    return W + 3 * (lora_law(adapter, adapter.rank, adapter.alpha) - W)


@wrong("law", options={"gain": 3.0}, law=gained_law)
class IgnoresItsOption(Gained):
    def __init__(self, base, rank, alpha, *, key, gain=1.0):
        super().__init__(base, rank, alpha, key=key)


@wrong("state-round-trip", options={"gain": 3.0}, law=gained_law)
class LosesItsOptionInAFile(Gained):
    """The option is in a static field, which a file does not hold."""

    gain: float = eqx.field(static=True)

    def __init__(self, base, rank, alpha, *, key, gain=1.0):
        super().__init__(base, rank, alpha, key=key)
        self.gain = gain


@wrong("key-forms")
class ChangesItsDefault(LoRA):
    offset: jax.Array

    def __init__(self, base, rank, alpha, *, key, offsets=[]):  # noqa: B006
        super().__init__(base, rank, alpha, key=key)
        offsets.append(1.0)
        self.offset = jnp.asarray(float(len(offsets)))


@wrong("contract", options={"scales": [1.0]})
class ChangesItsOption(LoRA):
    scales: jax.Array

    def __init__(self, base, rank, alpha, *, key, scales):
        super().__init__(base, rank, alpha, key=key)
        scales.append(2.0)
        self.scales = jnp.asarray(scales)


def at_rank(rank_of):
    return lambda cls, W, rank, key: LoRA.start(W, rank_of(rank), key)


by_count("IgnoresTheRank", start=at_rank(lambda rank: 1))
by_count("DoublesTheRank", start=at_rank(lambda rank: 2 * rank))
changed(
    "state-round-trip",
    "StoresAnotherRank",
    rank=Field(lambda self, base, key: base.in_features, is_static=True),
    scale=lambda self: self.alpha / len(self.lora_A),
)
# A restored adapter divides again.
changed(
    "law",
    "StoresTheScaleAsAlpha",
    alpha=Field(lambda self, base, key: self.alpha / self.rank, is_static=True),
    scale=lambda self: self.alpha,
)
changed("answers", "IgnoresAlpha", alpha=Field(lambda self, base, key: self.rank, is_static=True))
changed(
    "trainable-fields",
    "StoresAlphaAsAnArray",
    alpha=Field(lambda self, base, key: jnp.asarray(self.alpha), is_static=True),
)


@wrong("state-round-trip")
class SwapsRankAndAlpha(LoRA):
    def __init__(self, base, rank, alpha, *, key):
        super().__init__(base, rank, alpha, key=key)
        self.rank, self.alpha = alpha, rank


@wrong("contract")
class TakesNoKey(LoRA):
    def __init__(self, base, rank, alpha):
        super().__init__(base, rank, alpha, key=jax.random.key(0))


@wrong("contract")
class NeedsAnOption(LoRA):
    def __init__(self, base, rank, alpha, *, key, dropout):
        super().__init__(base, rank, alpha, key=key)


@wrong("ranks", says="With rank 1, it fails: ZeroDivisionError")
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
        return A.reshape(rank, -1), cls.first_B(W, rank, key)


@wrong("ranks", says="(?s)With rank 3, it fails: ValueError: no odd ranks.*raise ValueError")
class RefusesOddRanksWhenCalled(LoRA):
    def __call__(self, x):
        if self.rank == 3:
            raise ValueError("no odd ranks")
        return super().__call__(x)


changed(
    "ranks",
    "OverflowsAtRankOne",
    says="With rank 1, the output is not finite",
    added=lambda self, x: LoRA.added(self, x) * (1e38 if self.rank == 1 else 1) * 1e3,
)
