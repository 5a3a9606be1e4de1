"""Adapters that do not start as their layer, or that cannot leave the start."""

import jax
import jax.numpy as jnp
from tests.core.good_adapter import float_of

from ._bases import EmbeddingLoRA, Frozen, LoRA, Magnitude
from ._rows import wrong


@wrong("identity-at-init")
class BothFactorsAreRandom(LoRA):
    """Neither factor starts at zero."""

    @classmethod
    def start(cls, W, rank, key):
        A, B = super().start(W, rank, key)
        return A, jax.random.normal(key, B.shape, B.dtype)


@wrong("identity-at-init")
class StartsWithNoise(LoRA):
    """`B` starts with noise of 1e-3."""

    @classmethod
    def start(cls, W, rank, key):
        A, B = super().start(W, rank, key)
        return A, 1e-3 * jax.random.normal(key, B.shape, B.dtype)


@wrong("identity-at-init")
class SquareLayersStartAsTheIdentity(LoRA):
    """`B` starts as the identity for square layers."""

    @classmethod
    def start(cls, W, rank, key):
        A, B = super().start(W, rank, key)
        return A, jnp.eye(*B.shape, dtype=B.dtype) if W.shape[0] == W.shape[1] else B


@wrong("gradients")
class StartsAtZeroTwice(LoRA):
    """Both factors start at zero, so that no gradient ever moves them."""

    @classmethod
    def start(cls, W, rank, key):
        A, B = super().start(W, rank, key)
        return jnp.zeros_like(A), B


@wrong("gradients")
class BothFactorsOfTheTableAreZero(EmbeddingLoRA):
    """Both factors of a table start at zero, so that no gradient ever moves them."""

    @classmethod
    def start(cls, W, rank, key):
        A, B = super().start(W, rank, key)
        return jnp.zeros_like(A), B


@wrong("input-jet")
class DeadAtTheStart(LoRA):
    """`relu(B)` has a zero gradient where `B` starts."""

    def live(self):
        return jax.nn.relu(self.lora_B)

    def added(self, x):
        A, B = self.lora_A.astype(x.dtype), self.live().astype(x.dtype)
        return self.scale() * (B @ (A @ x))

    def update(self):
        return self.scale() * (self.live() @ self.lora_A)


@wrong("law")
class SquaresB(LoRA):
    """The square of `B` has a zero gradient where `B` starts."""

    def added(self, x):
        A, B = self.lora_A.astype(x.dtype), (self.lora_B**2).astype(x.dtype)
        return self.scale() * (B @ (A @ x))

    def update(self):
        return self.scale() * (self.lora_B**2 @ self.lora_A)


@wrong("identity-at-init")
class StartsWithoutTheNorms(Magnitude):
    """DoRA's magnitude starts at one, whatever the norms of the weight."""

    def __init__(self, base, rank, alpha, *, key):
        super().__init__(base, rank, alpha, key=key)
        self.magnitude = jnp.ones_like(self.magnitude)


@wrong("identity-at-init")
class StartsFromTheTransposedNorms(Magnitude):
    """DoRA's magnitude starts with the norms of the columns of a square weight."""

    def __init__(self, base, rank, alpha, *, key):
        super().__init__(base, rank, alpha, key=key)
        W = float_of(base.weight)
        if W.shape[0] == W.shape[1]:
            self.magnitude = self.norms(W.T)


@wrong("gradients")
class NormsOfBAreNaN(LoRA):
    """Divides by the norm of `B`, whose gradient at zero is NaN."""

    def normed(self):
        norm = jnp.sqrt(jnp.sum(self.lora_B**2))
        return self.lora_B / (1 + norm)

    def added(self, x):
        A, B = self.lora_A.astype(x.dtype), self.normed().astype(x.dtype)
        return self.scale() * (B @ (A @ x))

    def update(self):
        return self.scale() * (self.normed() @ self.lora_A)


@wrong("reads-like-the-layer")
class StartsAtInfinity(LoRA):
    """`A` is divided by the sum of `B`, which is zero."""

    @classmethod
    def start(cls, W, rank, key):
        A, B = super().start(W, rank, key)
        return A / jnp.sum(B), B


@wrong("ranks")
class HardCodesTheRank(LoRA):
    """`B` has two columns, whatever the rank."""

    @classmethod
    def start(cls, W, rank, key):
        A, _ = super().start(W, rank, key)
        return A, jnp.zeros((W.shape[0], 2), W.dtype)


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


@wrong("key-forms")
class IgnoresTheKey(LoRA):
    """Draws from `jax.random.key(0)`, so that all layers start alike."""

    @classmethod
    def start(cls, W, rank, key):
        return super().start(W, rank, jax.random.key(0))


@wrong("key-forms")
class SeedsFromTheShape(LoRA):
    """Draws from a seed of the layer's shape, so that layers of one shape start alike."""

    @classmethod
    def start(cls, W, rank, key):
        return super().start(W, rank, jax.random.key(W.size + rank))


@wrong(None, survives="a frozen array may be a fixed basis")
class FrozenScalesIgnoreTheKey(Frozen):
    """Draws the frozen scales from a seed of its own, so that all layers have the same scales."""

    def __init__(self, base, rank, alpha, *, key):
        super().__init__(base, rank, alpha, key=key)
        self.scales = 1 + jax.random.uniform(jax.random.key(7), (rank,), self.lora_A.dtype)


@wrong(None, survives="the start is the method's, and a trained adapter is right")
class RowsStartAlike(LoRA):
    """All rows of `A` start with the same numbers, so that the update has rank one for ever."""

    @classmethod
    def start(cls, W, rank, key):
        A, B = super().start(W, rank, key)
        return jnp.broadcast_to(A[:1], A.shape), B
