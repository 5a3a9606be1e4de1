"""Adapters that claim the wrong layers."""

import equinox as eqx
import jax
import jax.numpy as jnp

from ._bases import AttentionLoRA, ConvLoRA, EmbeddingLoRA, LoRA
from ._rows import changed, noticed_by, wrong

by_claims = noticed_by("applies-to-total")
by_greed = noticed_by("applies-to-not-greedy")


def claims(leaf):
    return LoRA.applies_to(leaf)


by_claims("RaisesForNone", applies_to=lambda cls, leaf: leaf.weight.ndim == 2)
by_claims("RaisesForArrays", applies_to=lambda cls, leaf: False if leaf == 0 else claims(leaf))
by_claims("AnswersANumber", applies_to=lambda cls, leaf: leaf.weight.ndim if claims(leaf) else 0)
by_claims("AnswersNone", applies_to=lambda cls, leaf: True if claims(leaf) else None)
by_claims(
    "AnswersAnArray", applies_to=lambda cls, leaf: jnp.asarray(True) if claims(leaf) else False
)
by_claims(
    "ClaimsNothing", applies_to=lambda cls, leaf: type(leaf).__module__ == "equinox.nn.linear"
)
by_claims(
    "ClaimsArrays",
    applies_to=lambda cls, leaf: (isinstance(leaf, jax.Array) and leaf.ndim == 2) or claims(leaf),
)
by_claims("ClaimsAdapters", applies_to=lambda cls, leaf: isinstance(leaf, cls) or claims(leaf))
by_claims("ClaimsClasses", applies_to=lambda cls, leaf: leaf is eqx.nn.Linear or claims(leaf))
by_claims(
    "ClaimsTuples",
    applies_to=lambda cls, leaf: (
        (isinstance(leaf, tuple) and len(leaf) == 1 and claims(leaf[0])) or claims(leaf)
    ),
)
by_claims(
    "ClaimsUnlikeAttention",
    AttentionLoRA,
    applies_to=lambda cls, leaf: leaf.query_proj.weight.ndim == 2,
)
by_greed(
    "ClaimsEveryWeight",
    applies_to=lambda cls, leaf: isinstance(leaf, eqx.nn.LayerNorm) or claims(leaf),
)
by_greed(
    "ClaimsContainers",
    applies_to=lambda cls, leaf: (
        (isinstance(leaf, eqx.nn.Sequential) and claims(leaf.layers[0])) or claims(leaf)
    ),
)
by_greed(
    "ClaimsNorms", applies_to=lambda cls, leaf: isinstance(leaf, eqx.nn.WeightNorm) or claims(leaf)
)


@wrong("applies-to-not-greedy")
class ClaimsByTheShape(LoRA):
    @classmethod
    def applies_to(cls, leaf):
        weight = getattr(leaf, "weight", None)
        is_matrix = eqx.is_inexact_array(weight) and weight.ndim >= 2
        return isinstance(leaf, eqx.Module) and is_matrix and not isinstance(leaf, cls)


@wrong("contract")
class ClaimsByMethod(LoRA):
    def applies_to(self, leaf):  # pyright: ignore
        return type(leaf) is eqx.nn.Linear


def is_of_class(leaf, kind):
    return isinstance(leaf, kind) and eqx.is_inexact_array(leaf.weight)


# The call of a subclass may compute anything.
@wrong("subclass", says="a subclass with a `__call__`")
class ClaimsSubclasses(LoRA):
    @classmethod
    def applies_to(cls, leaf):
        return is_of_class(leaf, eqx.nn.Linear) and leaf.weight.ndim >= 2

    def __call__(self, x):
        y = self.base.weight @ x + self.added(x)
        return y if self.base.bias is None else y + self.base.bias


changed(
    "subclass-merge",
    "AddsToSubclasses",
    ClaimsSubclasses,
    survives="the check is advice",
    says="a subclass with a `__call__`",
    __call__=lambda self, x: self.base(x) + self.added(x),
)
changed(
    "subclass",
    "ClaimsSubclassesOfTables",
    EmbeddingLoRA,
    applies_to=lambda cls, leaf: is_of_class(leaf, eqx.nn.Embedding) and leaf.weight.ndim == 2,
    __call__=lambda self, x: self.base.weight[x] + self.added(x),
)


@wrong("subclass")
class ClaimsSubclassesOfConvolutions(ConvLoRA):
    @classmethod
    def applies_to(cls, leaf):
        return is_of_class(leaf, eqx.nn.Conv) and leaf.weight.ndim == leaf.num_spatial_dims + 2

    def __call__(self, x):
        y = self.convolved(x, self.base.weight) + self.added(x)
        return y if self.base.bias is None else y + self.base.bias


changed(
    "applies-to-needs-arrays",
    "ClaimsLayersWithoutArrays",
    survives="the check is advice",
    applies_to=lambda cls, leaf: type(leaf) is eqx.nn.Linear,
)
changed(
    None,
    "ClaimsIntegerWeights",
    survives="the check `applies-to-needs-arrays` is advice, and tries no integers",
    applies_to=lambda cls, leaf: type(leaf) is eqx.nn.Linear and eqx.is_array(leaf.weight),
)


@wrong("answers")
class WritesIntoTheLeaf(LoRA):
    """`applies_to` marks a layer that it has seen, and claims every layer once."""

    @classmethod
    def applies_to(cls, leaf):
        if not super().applies_to(leaf) or "seen" in vars(leaf):
            return False
        object.__setattr__(leaf, "seen", True)
        return True
