"""Adapters that do not start as their layer, or that cannot leave the start."""

import jax
import jax.numpy as jnp
from tests.core.good_adapter import float_of

from ._bases import EmbeddingLoRA, Frozen, LoRA, Magnitude
from ._rows import Field, changed, noticed_by, wrong

by_gradients = noticed_by("gradients")
by_keys = noticed_by("key-forms")
by_start = noticed_by("identity-at-init")


def normal(cls, W, rank, key):
    return jax.random.normal(key, (W.shape[0], rank), W.dtype)


by_start("BothFactorsAreRandom", first_B=normal)
by_start("StartsWithNoise", first_B=lambda cls, W, rank, key: 1e-3 * normal(cls, W, rank, key))


@wrong("identity-at-init")
class SquareLayersStartAsTheIdentity(LoRA):
    @classmethod
    def first_B(cls, W, rank, key):
        is_square = W.shape[0] == W.shape[1]
        return jnp.eye(len(W), rank, dtype=W.dtype) if is_square else super().first_B(W, rank, key)


def zeros(self, base, key):
    return jnp.zeros_like(self.lora_A)


# No gradient ever moves two factors of zeros.
by_gradients("BothFactorsAreZero", lora_A=Field(zeros))
by_gradients("BothFactorsOfTheTableAreZero", EmbeddingLoRA, lora_A=Field(zeros))
# Both have a zero gradient where `B` starts.
changed("input-jet", "RectifiesB", factors=lambda self: (self.lora_A, jax.nn.relu(self.lora_B)))
changed("law", "SquaresB", factors=lambda self: (self.lora_A, self.lora_B**2))
by_gradients(
    "GradientOfTheNormOfBIsNaN",
    factors=lambda self: (self.lora_A, self.lora_B / (1 + jnp.sqrt(jnp.sum(self.lora_B**2)))),
)
by_start(
    "MagnitudeStartsAtOne",
    Magnitude,
    magnitude=Field(lambda self, base, key: jnp.ones_like(self.magnitude)),
)


@wrong("identity-at-init")
class StartsFromTheTransposedNorms(Magnitude):
    def __init__(self, base, rank, alpha, *, key):
        super().__init__(base, rank, alpha, key=key)
        W = float_of(base.weight)
        if W.shape[0] == W.shape[1]:
            self.magnitude = self.norms(W.T)


changed(
    "reads-like-the-layer",
    "StartsAtInfinity",
    lora_A=Field(lambda self, base, key: self.lora_A / jnp.sum(self.lora_B)),
)
changed(
    "ranks",
    "HardCodesTheRank",
    first_B=lambda cls, W, rank, key: jnp.zeros((W.shape[0], 2), W.dtype),
)


@wrong("ranks", says="With rank [0-9]+, it fails: .*")
class TakesRowsOfTheWeight(LoRA):
    """Takes `rank` rows of the weight, which may have fewer."""

    @classmethod
    def start(cls, W, rank, key):
        return jnp.copy(W[:rank]), cls.first_B(W, rank, key)


@wrong("no-shared-buffers")
class BiasStartsTwice(LoRA):
    """A trained shift of the bias starts as the bias."""

    adapter_fields = ("lora_A", "lora_B", "shift")
    shift: jax.Array

    def __init__(self, base, rank, alpha, *, key):
        super().__init__(base, rank, alpha, key=key)
        W = float_of(base.weight)
        bias = base.bias
        self.shift = jnp.zeros(len(W), W.dtype) if bias is None else bias.astype(W.dtype)

    def added(self, x):
        return super().added(x) + self.shift.astype(x.dtype)


def seeded(seed):
    return lambda cls, W, rank, key: LoRA.start(W, rank, seed(W, rank, key))


# All layers, or all layers of one shape, start alike.
by_keys(
    "IgnoresTheKey",
    says="`lora_A` are the same for every key",
    start=seeded(lambda W, rank, key: jax.random.key(0)),
)
by_keys("SeedsFromTheShape", start=seeded(lambda W, rank, key: jax.random.key(W.size + rank)))
by_keys("KeepsItsKey", own_key=Field(lambda self, base, key: key))
changed(
    None,
    "FrozenScalesIgnoreTheKey",
    Frozen,
    survives="a frozen array may be a fixed basis",
    scales=Field(lambda self, base, key: jnp.arange(1, 1 + self.rank, dtype=self.lora_A.dtype)),
)
changed(
    None,
    "RowsOfAStartAlike",
    survives="the start is the method's, and a trained adapter is right",
    lora_A=Field(lambda self, base, key: jnp.broadcast_to(self.lora_A[:1], self.lora_A.shape)),
)
