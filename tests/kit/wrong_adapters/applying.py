"""Adapters that claim the wrong layers."""

import equinox as eqx
import jax
import jax.numpy as jnp

from ._bases import AttentionLoRA, ConvLoRA, EmbeddingLoRA, LoRA
from ._rows import wrong


@wrong("applies-to-total")
class RaisesForNone(LoRA):
    """`applies_to` reads `weight` of every node."""

    @classmethod
    def applies_to(cls, leaf):
        return leaf.weight.ndim == 2


@wrong("applies-to-total")
class RaisesForArrays(LoRA):
    """`applies_to` compares a node with `==`, which raises for arrays."""

    @classmethod
    def applies_to(cls, leaf):
        return False if leaf == 0 else super().applies_to(leaf)


@wrong("applies-to-total")
class AnswersANumber(LoRA):
    """`applies_to` answers with the number of axes."""

    @classmethod
    def applies_to(cls, leaf):
        return leaf.weight.ndim if super().applies_to(leaf) else 0


@wrong("applies-to-total")
class AnswersNone(LoRA):
    """`applies_to` answers `None` instead of `False`."""

    @classmethod
    def applies_to(cls, leaf):
        return True if super().applies_to(leaf) else None


@wrong("applies-to-total")
class AnswersAnArray(LoRA):
    """`applies_to` answers with an array of JAX."""

    @classmethod
    def applies_to(cls, leaf):
        return jnp.asarray(True) if super().applies_to(leaf) else False


@wrong("applies-to-total")
class ClaimsNothing(LoRA):
    """`applies_to` asks for a class of another library, and never claims a layer."""

    @classmethod
    def applies_to(cls, leaf):
        return type(leaf).__module__ == "equinox.nn.linear"


@wrong("applies-to-total")
class ClaimsArrays(LoRA):
    """`applies_to` claims bare matrices."""

    @classmethod
    def applies_to(cls, leaf):
        is_matrix = isinstance(leaf, jax.Array) and leaf.ndim == 2
        return is_matrix or super().applies_to(leaf)


@wrong("applies-to-total")
class ClaimsAdapters(LoRA):
    """`applies_to` claims adapted layers, which read like their layer."""

    @classmethod
    def applies_to(cls, leaf):
        return isinstance(leaf, cls) or super().applies_to(leaf)


@wrong("applies-to-not-greedy")
class ClaimsEveryWeight(LoRA):
    """`applies_to` claims every module with a weight."""

    @classmethod
    def applies_to(cls, leaf):
        return isinstance(leaf, eqx.nn.LayerNorm) or super().applies_to(leaf)


@wrong("applies-to-not-greedy")
class ClaimsContainers(LoRA):
    """`applies_to` claims a `Sequential` that starts with its layer."""

    @classmethod
    def applies_to(cls, leaf):
        is_container = isinstance(leaf, eqx.nn.Sequential) and super().applies_to(leaf.layers[0])
        return is_container or super().applies_to(leaf)


@wrong("applies-to-not-greedy")
class ClaimsNorms(LoRA):
    """`applies_to` claims a layer inside of `WeightNorm` with its norm."""

    @classmethod
    def applies_to(cls, leaf):
        return isinstance(leaf, eqx.nn.WeightNorm) or super().applies_to(leaf)


@wrong("applies-to-total")
class ClaimsClasses(LoRA):
    """`applies_to` claims the class as well as its layers."""

    @classmethod
    def applies_to(cls, leaf):
        return leaf is eqx.nn.Linear or super().applies_to(leaf)


@wrong("applies-to-total")
class ClaimsTuples(LoRA):
    """`applies_to` claims a tuple of one layer."""

    @classmethod
    def applies_to(cls, leaf):
        is_tuple = isinstance(leaf, tuple) and len(leaf) == 1 and super().applies_to(leaf[0])
        return is_tuple or super().applies_to(leaf)


@wrong("contract")
class ClaimsByMethod(LoRA):
    """`applies_to` is not a classmethod."""

    def applies_to(self, leaf):  # pyright: ignore
        return type(leaf) is eqx.nn.Linear


@wrong("subclass")
class ClaimsSubclasses(LoRA):
    """Claims subclasses of its layer, and computes `W x + b` whatever their call computes."""

    @classmethod
    def applies_to(cls, leaf):
        is_linear = isinstance(leaf, eqx.nn.Linear) and eqx.is_inexact_array(leaf.weight)
        return is_linear and leaf.weight.ndim >= 2

    def __call__(self, x):
        y = self.base.weight @ x + self.added(x)
        return y if self.base.bias is None else y + self.base.bias


@wrong("subclass")
class ClaimsSubclassesOfTables(EmbeddingLoRA):
    """Claims subclasses of embeddings, and looks the row up whatever their call computes."""

    @classmethod
    def applies_to(cls, leaf):
        is_table = isinstance(leaf, eqx.nn.Embedding) and eqx.is_inexact_array(leaf.weight)
        return is_table and leaf.weight.ndim == 2

    def __call__(self, x):
        return self.base.weight[x] + self.added(x)


@wrong("subclass")
class ClaimsSubclassesOfConvolutions(ConvLoRA):
    """Claims subclasses of convolutions, and convolves whatever their call computes."""

    @classmethod
    def applies_to(cls, leaf):
        is_convolution = isinstance(leaf, eqx.nn.Conv) and eqx.is_inexact_array(leaf.weight)
        return is_convolution and leaf.weight.ndim == leaf.num_spatial_dims + 2

    def __call__(self, x):
        y = self.convolved(x, self.base.weight) + self.added(x)
        return y if self.base.bias is None else y + self.base.bias


@wrong(None, survives="the check `applies-to-needs-arrays` is advice, and tries no integers")
class ClaimsIntegerWeights(LoRA):
    """`applies_to` claims a layer whose weight holds integers."""

    @classmethod
    def applies_to(cls, leaf):
        return type(leaf) is eqx.nn.Linear and eqx.is_array(leaf.weight)


@wrong("applies-to-total")
class ClaimsUnlikeAttention(AttentionLoRA):
    """`applies_to` claims every module with a query projection of any kind, and raises for none."""

    @classmethod
    def applies_to(cls, leaf):
        return leaf.query_proj.weight.ndim == 2


@wrong("applies-to-not-greedy")
class ClaimsByTheShape(LoRA):
    """`applies_to` claims any module whose weight is a matrix and that has a bias."""

    @classmethod
    def applies_to(cls, leaf):
        weight = getattr(leaf, "weight", None)
        is_matrix = eqx.is_inexact_array(weight) and weight.ndim >= 2
        return isinstance(leaf, eqx.Module) and is_matrix and not isinstance(leaf, cls)


@wrong("answers")
class WritesIntoTheLeaf(LoRA):
    """`applies_to` marks a layer that it has seen, and claims every layer once."""

    @classmethod
    def applies_to(cls, leaf):
        if not super().applies_to(leaf) or "seen" in vars(leaf):
            return False
        object.__setattr__(leaf, "seen", True)
        return True
