"""Adapters that depend on something beside their arguments, or change something."""

import itertools
import time
import uuid

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ._bases import LoRA, with_weight
from ._rows import wrong

COUNTER = itertools.count()
GENERATOR = np.random.default_rng()
CALLS: list[None] = []
MERGED: dict[tuple[int, ...], jax.Array] = {}
UPDATES: dict[str, jax.Array] = {}


@wrong("key-forms")
class DrawsFromNumPy(LoRA):
    """The start comes from a global generator of NumPy."""

    @classmethod
    def start(cls, W, rank, key):
        A, B = super().start(W, rank, key)
        return A + jnp.asarray(GENERATOR.normal(size=A.shape), A.dtype), B


@wrong("key-forms")
class CountsItsLayers(LoRA):
    """The seed is a counter of the adapters that were built in this process."""

    @classmethod
    def start(cls, W, rank, key):
        return super().start(W, rank, jax.random.key(next(COUNTER)))


@wrong("key-forms")
class SeedsFromTheClock(LoRA):
    """The seed is the time."""

    @classmethod
    def start(cls, W, rank, key):
        return super().start(W, rank, jax.random.key(time.perf_counter_ns() % 2**31))


@wrong("law")
class NeedsARawKey(LoRA):
    """Reads the numbers of the key by index, which a typed key forbids."""

    @classmethod
    def start(cls, W, rank, key):
        return super().start(W, rank, jax.random.PRNGKey(key[1]))


@wrong("key-forms")
class NeedsATypedKey(LoRA):
    """Refuses raw keys."""

    @classmethod
    def start(cls, W, rank, key):
        if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
            raise TypeError("the key must be a typed key")
        return super().start(W, rank, key)


@wrong("state-round-trip")
class SeedsFromTheWeight(LoRA):
    """Draws from a seed of the weight's values, by `int(...)`."""

    @classmethod
    def start(cls, W, rank, key):
        return super().start(W, rank, jax.random.fold_in(key, int(abs(W).sum())))


@wrong(None, survives="differs between processes alone; a check would have to start a process")
class SeedsFromAHash(LoRA):
    """Folds Python's hash of a text into the key, which differs from process to process."""

    @classmethod
    def start(cls, W, rank, key):
        return super().start(W, rank, jax.random.fold_in(key, hash("lora_A") % 2**31))


@wrong("input-derivatives")
class WarmsUpByCalls(LoRA):
    """The scale grows with the number of calls, which a Python list counts."""

    def added(self, x):
        CALLS.append(None)
        return super().added(x) * min(1.0, len(CALLS) / 1e6)


@wrong("reads-like-the-layer")
class CachesTheMergedWeight(LoRA):
    """Keeps the first update of a shape in a global dict, and uses this update for ever."""

    def update(self):
        return MERGED.setdefault(self.base.weight.shape, super().update())


@wrong("alpha")
class CachesItsFirstOutput(LoRA):
    """The call keeps `B A` of the first call in a global dict."""

    def added(self, x):
        key = f"{self.base.weight.shape}{x.dtype}{self.rank}"
        return UPDATES.setdefault(key, self.update().astype(x.dtype)) @ x


@wrong("state-round-trip")
class ChangesItsBase(LoRA):
    """The constructor writes a smaller weight into the layer that it was given."""

    def __init__(self, base, rank, alpha, *, key):
        super().__init__(base, rank, alpha, key=key)
        object.__setattr__(base, "weight", 0.5 * base.weight)


@wrong("purity")
class MergeWritesIntoTheBase(LoRA):
    """`merge` writes the merged weight into the frozen layer, and returns this layer."""

    def merge(self):
        object.__setattr__(self.base, "weight", super().merge().weight)
        return self.base


@wrong("purity")
class MergeCountsItsCalls(LoRA):
    """`merge` marks the adapter as merged, and a second `merge` adds nothing."""

    def merge(self):
        if self.__dict__.get("is_merged"):
            return self.base
        object.__setattr__(self, "is_merged", True)
        return super().merge()


@wrong("purity")
class PrintsItsOutput(LoRA):
    """The call prints by a callback, in every step of every training."""

    def added(self, x):
        term = super().added(x)
        jax.debug.callback(lambda value: None, term[0])
        return term


@wrong("input-derivatives")
class DropsAtRandom(LoRA):
    """The call drops entries of the input with a constant key, also at inference."""

    def added(self, x):
        keep = jax.random.bernoulli(jax.random.key(0), 0.5, x.shape)
        return super().added(x * keep.astype(x.dtype))


@wrong("input-derivatives")
class BranchesOnTheInput(LoRA):
    """The call has a Python `if` on the input's values."""

    def added(self, x):
        return super().added(x) if jnp.sum(x) > -1e30 else 0 * x[:1]


@wrong("input-derivatives")
class BranchesOnItsValues(LoRA):
    """The call has a Python `if` on the values of `B`."""

    def __call__(self, x):
        return self.base(x) + self.added(x) if jnp.any(self.lora_B != 0) else self.base(x)


@wrong("input-derivatives")
class ChecksItsInput(LoRA):
    """The call asserts that the input is finite."""

    def added(self, x):
        assert jnp.all(jnp.isfinite(x))
        return super().added(x)


@wrong("input-derivatives")
class ComputesWithNumPy(LoRA):
    """The call computes the update with NumPy."""

    def added(self, x):
        product = np.asarray(self.lora_B) @ np.asarray(self.lora_A)
        return jnp.asarray(self.scale() * product @ np.asarray(x), x.dtype)


@wrong("state-round-trip")
class StartsWithNumPy(LoRA):
    """The constructor decomposes the weight with NumPy."""

    @classmethod
    def start(cls, W, rank, key):
        _, B = super().start(W, rank, key)
        _, _, V = np.linalg.svd(np.asarray(W))
        return jnp.asarray(np.resize(V, (rank, W.shape[1])), W.dtype), B


@wrong("residual-gradients")
class MergesWithNumPy(LoRA):
    """`merge` computes with NumPy, so it is neither compiled nor differentiated."""

    def update(self):
        product = np.asarray(self.lora_B) @ np.asarray(self.lora_A)
        return jnp.asarray(self.scale() * product, self.lora_A.dtype)


@wrong("input-derivatives")
class SelectsByValue(LoRA):
    """The call selects the positive inputs by an index of bools."""

    def added(self, x):
        total = jnp.sum(x[x > 0])
        return super().added(x) + 0 * total


@wrong("state-round-trip")
class StartsWithTheLargeRows(LoRA):
    """The constructor takes the rows that `nonzero` gives, a number that depends on values."""

    @classmethod
    def start(cls, W, rank, key):
        A, B = super().start(W, rank, key)
        (rows,) = jnp.nonzero(jnp.linalg.norm(W, axis=1) > 0)
        return A + 0 * W[rows][:1], B


@wrong("state-round-trip")
class TagsItself(LoRA):
    """A static field holds a random identifier."""

    tag: str = eqx.field(static=True)

    def __init__(self, base, rank, alpha, *, key):
        super().__init__(base, rank, alpha, key=key)
        self.tag = uuid.uuid4().hex


@wrong("reads-like-the-layer")
class MergesByItsWeight(LoRA):
    """`merge` reads `self.weight`, the merged weight, and never ends."""

    def merge(self):
        return with_weight(self.base, self.weight)
