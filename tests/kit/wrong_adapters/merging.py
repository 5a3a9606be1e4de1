"""Adapters whose merged, unwrapped or read layer has the wrong form."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np

from jno.lora import WrapperError

from ._bases import LoRA, copy_of, with_bias, with_weight
from ._rows import wrong


class MergedLinear(eqx.nn.Linear):
    """A class of layers for merged weights."""


@wrong("merge-restores-form")
class MergeChangesTheClass(LoRA):
    """`merge` returns a layer of a class of its own."""

    def merge(self):
        return copy_of(super().merge(), MergedLinear)


@wrong("reads-like-the-layer")
class MergeReturnsAFunction(LoRA):
    """`merge` returns a function."""

    def merge(self):
        plain = super().merge()
        return lambda x: plain(x)


@wrong("law")
class MergeReturnsTheAdapter(LoRA):
    """`merge` returns the adapter."""

    def merge(self):
        return self


@wrong("reads-like-the-layer")
class MergeReturnsAnArray(LoRA):
    """`merge` returns the weight."""

    def merge(self):
        return super().merge().weight


@wrong("input-derivatives")
class MergeRemovesTheBias(LoRA):
    """`merge` puts the bias into the call, and leaves `None` in the layer."""

    def merge(self):
        plain = super().merge()
        return plain if plain.bias is None else with_bias(plain, None)


@wrong("merge-equals-call")
class MergeAddsABias(LoRA):
    """`merge` gives a bias of zeros to a layer without a bias."""

    def merge(self):
        plain = super().merge()
        zeros = jnp.zeros(len(plain.weight), plain.weight.dtype)
        return plain if plain.bias is not None else copy_of(plain, eqx.nn.Linear, bias=zeros)


@wrong("reads-like-the-layer")
class MergeChangesAStaticField(LoRA):
    """`merge` returns a layer that says `use_bias=False`."""

    def merge(self):
        plain = super().merge()
        return copy_of(plain, eqx.nn.Linear, use_bias=False)


@wrong("input-derivatives")
class MergeStacksTheWeight(LoRA):
    """`merge` returns a weight with an axis more."""

    def merge(self):
        plain = super().merge()
        return eqx.tree_at(lambda node: node.weight, plain, plain.weight[None])


@wrong("residual-gradients")
class MergeGivesNumPy(LoRA):
    """`merge` returns a layer with a NumPy weight."""

    def merge(self):
        plain = super().merge()
        return eqx.tree_at(lambda node: node.weight, plain, np.asarray(plain.weight))


@wrong("merge-restores-form")
class MergeKeepsFloat32(LoRA):
    """`merge` keeps the update's dtype for the weight."""

    def merge(self):
        W = self.base.weight.astype(self.lora_A.dtype) + self.update()
        return eqx.tree_at(lambda node: node.weight, self.base, W)


@wrong("reads-like-the-layer")
class MergeRefuses(LoRA):
    """`merge` raises, but the class does not say `mergeable = False`."""

    def merge(self):
        raise WrapperError("merging is not supported")


@wrong("merge-restores-form")
class MergesThoughUnmergeable(LoRA):
    """The class says `mergeable = False`, and `merge` returns the layer without the update."""

    mergeable = False

    def merge(self):
        return self.base


@wrong("merge-restores-form")
class SaysUnmergeableAndRaisesAnotherError(LoRA):
    """`merge` of an adapter that cannot be merged raises `NotImplementedError`."""

    mergeable = False

    def merge(self):
        raise NotImplementedError


@wrong("unwrap-restores")
class UnwrapGivesTheMergedLayer(LoRA):
    """`unwrap` returns the merged layer."""

    def unwrap(self):
        return self.merge()


@wrong("unwrap-restores")
class UnwrapCastsTheWeight(LoRA):
    """`unwrap` rounds the weight to bfloat16."""

    def unwrap(self):
        weight = self.base.weight.astype(jnp.bfloat16)
        return with_weight(self.base, weight)


@wrong("state-round-trip")
class KeepsARoundedBase(LoRA):
    """The constructor keeps a copy of the layer in eight bits, to save memory."""

    def __init__(self, base, rank, alpha, *, key):
        super().__init__(base, rank, alpha, key=key)
        self.base = with_weight(base, base.weight.astype(jnp.float8_e4m3fn))


@wrong("unwrap-restores")
class UnwrapDropsTheBias(LoRA):
    """`unwrap` builds a layer without the bias."""

    def unwrap(self):
        base = self.base
        return base if base.bias is None else with_bias(base, jnp.zeros_like(base.bias))


@wrong("reads-like-the-layer")
class ReadsTheFrozenWeight(LoRA):
    """The property `weight` gives the frozen weight, so a model that reads it sees no adapter."""

    @property
    def weight(self):
        return self.base.weight


@wrong("reads-like-the-layer")
class ReadsTheUpdate(LoRA):
    """The property `weight` gives the update alone."""

    @property
    def weight(self):
        return self.update()


@wrong("reads-like-the-layer")
class HidesTheWidth(LoRA):
    """A field `in_features` holds the rank, and hides the layer's."""

    in_features: int = eqx.field(static=True)

    def __init__(self, base, rank, alpha, *, key):
        super().__init__(base, rank, alpha, key=key)
        self.in_features = rank
