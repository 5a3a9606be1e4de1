"""Adapters that do not start as their layer, or that cannot leave the start."""

import jax
import jax.numpy as jnp

from ._bases import EmbeddingLoRA, Frozen, LoRA, Magnitude
from ._rows import Field, changed, noticed_by, trained

by_gradients = noticed_by("gradients")
by_keys = noticed_by("key-forms")
by_ranks = noticed_by("ranks")
by_start = noticed_by("identity-at-init")


def normal(cls, W, rank, key):
    return jax.random.normal(key, (W.shape[0], rank), W.dtype)


def is_square(W):
    return W.shape[0] == W.shape[1]


def eye_if_square(cls, W, rank, key):
    return jnp.eye(len(W), rank, dtype=W.dtype) * is_square(W)


by_start("BothFactorsAreRandom", first_B=normal)
by_start("StartsWithNoise", first_B=lambda cls, W, rank, key: 1e-3 * normal(cls, W, rank, key))
by_start("SquareLayersStartAsTheIdentity", first_B=eye_if_square)


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


def ones(self, base, key):
    return jnp.ones_like(self.magnitude)


def norms_transposed(self, base, key):
    W = self.matrix(base)
    return self.norms(W.T) if is_square(W) else self.magnitude


by_start("MagnitudeStartsAtOne", Magnitude, magnitude=Field(ones))
by_start("StartsFromTheTransposedNorms", Magnitude, magnitude=Field(norms_transposed))
changed(
    "reads-like-the-layer",
    "StartsAtInfinity",
    lora_A=Field(lambda self, base, key: self.lora_A / jnp.sum(self.lora_B)),
)
by_ranks("HardCodesTheRank", first_B=lambda cls, W, rank, key: jnp.zeros((W.shape[0], 2), W.dtype))
# A layer may have fewer rows.
by_ranks(
    "TakesRowsOfTheWeight",
    says="With rank [0-9]+, it fails: .*",
    start=lambda cls, W, rank, key: (jnp.copy(W[:rank]), cls.first_B(W, rank, key)),
)


def bias_of(self, base, key):
    zeros = jnp.zeros(len(self.lora_B), self.lora_B.dtype)
    return zeros if base.bias is None else base.bias.astype(zeros.dtype)


# A trained shift of the bias starts as the bias.
changed(
    "no-shared-buffers",
    "BiasStartsTwice",
    shift=trained(bias_of),
    added=lambda self, x: LoRA.added(self, x) + self.shift.astype(x.dtype),
)


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
