"""Adapters that depend on something beside their arguments, or change something."""

import itertools
import time
import uuid

import jax
import jax.numpy as jnp
import numpy as np

from ._bases import LoRA, with_weight
from ._rows import Field, changed, noticed_by, static, wrong

by_derivatives = noticed_by("input-derivatives")
by_file = noticed_by("state-round-trip")
by_keys = noticed_by("key-forms")
by_reading = noticed_by("reads-like-the-layer")


COUNTER = itertools.count()
GENERATOR = np.random.default_rng()
CALLS = itertools.count(1)
MERGED: dict[tuple[int, ...], jax.Array] = {}
UPDATES: dict[str, jax.Array] = {}


def seeded(key_of):
    """A start from another key: `key_of(W, key)`."""
    return lambda cls, W, rank, key: LoRA.start(W, rank, key_of(W, key))


def drawn_from_numpy(self, base, key):
    return self.lora_A + jnp.asarray(GENERATOR.normal(size=self.lora_A.shape), self.lora_A.dtype)


by_keys("DrawsFromNumPy", lora_A=Field(drawn_from_numpy))
by_keys("CountsItsLayers", start=seeded(lambda W, key: jax.random.key(next(COUNTER))))
by_keys(
    "SeedsFromTheClock", start=seeded(lambda W, key: jax.random.key(time.perf_counter_ns() % 2**31))
)
# A typed key cannot be indexed.
changed("law", "NeedsARawKey", start=seeded(lambda W, key: jax.random.PRNGKey(key[1])))


@wrong("key-forms")
class NeedsATypedKey(LoRA):
    @classmethod
    def start(cls, W, rank, key):
        if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
            raise TypeError("the key must be a typed key")
        return super().start(W, rank, key)


by_file(
    "SeedsFromTheWeight", start=seeded(lambda W, key: jax.random.fold_in(key, int(abs(W).sum())))
)
changed(
    None,
    "SeedsFromAHash",
    survives="differs between processes alone; a check would have to start a process",
    start=seeded(lambda W, key: jax.random.fold_in(key, hash("lora_A") % 2**31)),
)
by_derivatives(
    "WarmsUpByCalls", added=lambda self, x: LoRA.added(self, x) * min(1.0, next(CALLS) / 1e6)
)
by_reading(
    "CachesTheMergedWeight",
    update=lambda self: MERGED.setdefault(self.base.weight.shape, LoRA.update(self)),
)


@wrong("alpha")
class CachesItsFirstOutput(LoRA):
    def added(self, x):
        key = f"{self.base.weight.shape}{x.dtype}{self.rank}"
        return UPDATES.setdefault(key, self.update().astype(x.dtype)) @ x


@wrong("purity", says="The constructor changes the layer")
class ChangesItsBase(LoRA):
    def __init__(self, base, rank, alpha, *, key):
        super().__init__(base, rank, alpha, key=key)
        object.__setattr__(base, "weight", 0.5 * base.weight)


@wrong("purity")
class MergeWritesIntoTheBase(LoRA):
    def merge(self):
        object.__setattr__(self.base, "weight", super().merge().weight)
        return self.base


@wrong("purity")
class MergeAddsOnlyOnce(LoRA):
    def merge(self):
        if self.__dict__.get("is_merged"):
            return self.base
        object.__setattr__(self, "is_merged", True)
        return super().merge()


@wrong("purity")
class PrintsItsOutput(LoRA):
    def added(self, x):
        term = super().added(x)
        jax.debug.callback(lambda value: None, term[0])
        return term


@wrong("input-derivatives")
class DropsAtRandom(LoRA):
    def added(self, x):
        keep = jax.random.bernoulli(jax.random.key(0), 0.5, x.shape)
        return super().added(x * keep.astype(x.dtype))


by_derivatives(
    "BranchesOnTheInput",
    added=lambda self, x: LoRA.added(self, x) if jnp.sum(x) > -1e30 else 0 * x[:1],
)
by_derivatives(
    "BranchesOnItsValues",
    __call__=lambda self, x: (
        self.base(x) + self.added(x) if jnp.any(self.lora_B != 0) else self.base(x)
    ),
)


@wrong("input-derivatives")
class ChecksItsInput(LoRA):
    def added(self, x):
        assert jnp.all(jnp.isfinite(x))
        return super().added(x)


def update_in_numpy(self):
    return self.scale() * np.asarray(self.lora_B) @ np.asarray(self.lora_A)


by_derivatives(
    "ComputesWithNumPy",
    added=lambda self, x: jnp.asarray(update_in_numpy(self) @ np.asarray(x), x.dtype),
)
# It is neither compiled nor differentiated.
changed(
    "residual-gradients",
    "MergesWithNumPy",
    update=lambda self: jnp.asarray(update_in_numpy(self), self.lora_A.dtype),
)


@wrong("state-round-trip")
class StartsWithNumPy(LoRA):
    @classmethod
    def start(cls, W, rank, key):
        _, _, V = np.linalg.svd(np.asarray(W))
        A = jnp.asarray(np.resize(V, (rank, W.shape[1])), W.dtype)
        return A, cls.first_B(W, rank, key)


by_derivatives("SelectsByValue", added=lambda self, x: LoRA.added(self, x) + 0 * jnp.sum(x[x > 0]))


@wrong("state-round-trip")
class StartsWithTheLargeRows(LoRA):
    """Takes the rows that `nonzero` gives, whose number depends on values."""

    @classmethod
    def start(cls, W, rank, key):
        A, B = super().start(W, rank, key)
        (rows,) = jnp.nonzero(jnp.linalg.norm(W, axis=1) > 0)
        return A + 0 * W[rows][:1], B


by_file("TagsItself", tag=static(lambda self, base, key: uuid.uuid4().hex))
# `self.weight` is the merged weight.
by_reading("MergesByItsWeight", merge=lambda self: with_weight(self.base, self.weight))
