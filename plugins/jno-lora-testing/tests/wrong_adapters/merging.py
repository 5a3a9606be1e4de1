"""Adapters whose merged, unwrapped or read layer has the wrong form."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np

from jno.lora import WrapperError

from ._bases import LoRA, copy_of, float_of, with_bias, with_weight
from ._rows import changed, noticed_by, static, wrong

by_call = noticed_by("merge-equals-call")
by_derivatives = noticed_by("input-derivatives")
by_form = noticed_by("merge-restores-form")
by_reading = noticed_by("reads-like-the-layer")
by_unwrapping = noticed_by("unwrap-restores")


class MergedLinear(eqx.nn.Linear):
    """A class of layers for merged weights."""


def merged(change):
    """A `merge` that gives the merged layer after this change."""
    return lambda self: change(LoRA.merge(self))


def weight_changed(change):
    """A `merge` that gives the merged layer with its weight after this change."""
    return merged(lambda layer: eqx.tree_at(lambda node: node.weight, layer, change(layer.weight)))


def bias_changed(change):
    """A `merge` that gives the merged layer with its bias, if it has one, after this change."""
    return merged(lambda layer: layer if layer.bias is None else with_bias(layer, change(layer)))


def with_bias_of_zeros(layer):
    zeros = jnp.zeros(len(layer.weight), layer.weight.dtype)
    return layer if layer.bias is not None else copy_of(layer, eqx.nn.Linear, bias=zeros)


by_form("MergeChangesTheClass", merge=merged(lambda layer: copy_of(layer, MergedLinear)))
by_reading("MergeReturnsAFunction", merge=merged(lambda layer: lambda x: layer(x)))
changed("law", "MergeReturnsTheAdapter", merge=lambda self: self)
by_reading("MergeReturnsAnArray", merge=merged(lambda layer: layer.weight))
by_derivatives("MergeRemovesTheBias", merge=bias_changed(lambda layer: None))
by_call("MergeMakesTheBiasZero", merge=bias_changed(lambda layer: jnp.zeros_like(layer.bias)))
by_derivatives(
    "MergeAddsTheSumsOfRowsToTheBias",
    merge=bias_changed(lambda layer: layer.bias + layer.weight.sum(axis=1)),
)
by_form("MergeWidensTheBias", merge=bias_changed(lambda layer: float_of(layer.bias)))
by_call("MergeAddsABias", merge=merged(with_bias_of_zeros))
by_reading(
    "MergeChangesAStaticField",
    merge=merged(lambda layer: copy_of(layer, eqx.nn.Linear, use_bias=False)),
)
by_derivatives("MergeAddsAnAxis", merge=weight_changed(lambda weight: weight[None]))
changed("residual-gradients", "MergeGivesNumPy", merge=weight_changed(np.asarray))


def merge_into_float32(self):
    W = self.base.weight.astype(self.lora_A.dtype) + self.update()
    return eqx.tree_at(lambda node: node.weight, self.base, W)


def refuse(self):
    raise WrapperError("merging is not supported")


def raise_another_error(self):
    raise NotImplementedError


by_form("MergeKeepsFloat32", merge=merge_into_float32)
by_reading("MergeRefuses", merge=refuse)  # and the class does not say `mergeable = False`
by_form("SaysUnmergeableAndRaisesAnotherError", mergeable=False, merge=raise_another_error)
by_form("MergesThoughUnmergeable", mergeable=False, merge=lambda self: self.base)


@wrong("state-round-trip")
class KeepsARoundedBase(LoRA):
    """The constructor keeps a copy of the layer in eight bits, to save memory."""

    def __init__(self, base, rank, alpha, *, key):
        super().__init__(base, rank, alpha, key=key)
        self.base = with_weight(base, base.weight.astype(jnp.float8_e4m3fn))


def without_bias(self):
    base = self.base
    return base if base.bias is None else with_bias(base, jnp.zeros_like(base.bias))


by_unwrapping("UnwrapGivesTheMergedLayer", unwrap=lambda self: self.merge())
by_unwrapping(
    "UnwrapRoundsTheWeight",
    unwrap=lambda self: with_weight(self.base, self.base.weight.astype(jnp.bfloat16)),
)
by_unwrapping("UnwrapDropsTheBias", unwrap=without_bias)
# A model that reads the weight sees no adapter.
by_reading("ReadsTheFrozenWeight", weight=property(lambda self: self.base.weight))
by_reading("ReadsTheUpdate", weight=property(lambda self: self.update()))
by_reading(
    "ReadsThroughToTheBase", __getattr__=lambda self, name: getattr(self.__dict__["base"], name)
)
by_reading("HidesTheWidth", in_features=static(lambda self, base, key: self.rank))
