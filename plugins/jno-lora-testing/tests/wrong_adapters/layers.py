"""Adapters that ignore what convolutions and attention can do beside a product."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from tests.core.good_adapter import float_of

from ._bases import AttentionLoRA, ConvLoRA, with_weight
from ._rows import noticed_by, wrong

by_call = noticed_by("merge-equals-call")
by_derivatives = noticed_by("input-derivatives")
by_file = noticed_by("state-round-trip")
by_law = noticed_by("law")


@wrong("merge-equals-call")
class ForgetsDilation(ConvLoRA):
    def added(self, x):
        spread = [
            d * (k - 1) for d, k in zip(self.base.dilation, self.base.kernel_size, strict=True)
        ]
        padded = np.array(self.base.padding)
        dense = [k - 1 for k in self.base.kernel_size]
        if spread == dense or self.base.padding_mode != "ZEROS":
            return super().added(x)
        padding = [(lo, hi + d - s) for (lo, hi), d, s in zip(padded, dense, spread, strict=True)]
        ones = (1,) * len(dense)
        return self.convolved(x, self.kernel(), rhs_dilation=ones, padding=padding)


def convolving(**settings):
    """The convolution with these settings, each a function of the layer."""
    return lambda self, x: self.convolved(
        x, self.kernel(), **{name: setting(self.base) for name, setting in settings.items()}
    )


by_call("ForgetsThePaddingMode", ConvLoRA, added=convolving(padding=lambda base: base.padding))
by_file(
    "ForgetsTheStride",
    ConvLoRA,
    added=convolving(window_strides=lambda base: (1,) * base.num_spatial_dims),
)
by_file("ForgetsGroups", ConvLoRA, added=convolving(feature_group_count=lambda base: 1))


@wrong("input-derivatives")
class MixesUpGroups(ConvLoRA):
    def added(self, x):
        kernel = self.kernel()
        groups = self.base.groups
        ordered = kernel.reshape(-1, groups, *kernel.shape[1:]).swapaxes(0, 1)
        return self.convolved(x, ordered.reshape(kernel.shape))


def flipped(kernel):
    return jnp.flip(kernel, tuple(range(2, kernel.ndim)))


def reordered(self):
    """The kernel with the input channels as the last axis of the matrix."""
    shape = self.base.weight.shape
    return jnp.moveaxis(self.update().reshape(shape[0], *shape[2:], shape[1]), -1, 1)


by_law("FlipsTheKernel", ConvLoRA, kernel=lambda self: flipped(ConvLoRA.kernel(self)))
by_call(
    "CallFlipsTheKernel", ConvLoRA, added=lambda self, x: self.convolved(x, flipped(self.kernel()))
)
by_law("OrdersTheAxesOtherwise", ConvLoRA, kernel=reordered)
by_derivatives(
    "MergeOrdersTheAxesOtherwise",
    ConvLoRA,
    merge=lambda self: with_weight(self.base, float_of(self.base.weight) + reordered(self)),
)


@wrong("merge-equals-call")
class PadsSymmetrically(ConvLoRA):
    def added(self, x):
        y = super().added(x)
        padding = np.array(self.base.padding)
        return y if (padding[:, 0] == padding[:, 1]).all() else jnp.roll(y, 1, axis=-1)


@wrong("merge-equals-call")
class ConvolutionAddsTheBiasTwice(ConvLoRA):
    def added(self, x):
        bias = self.base.bias
        return super().added(x) if bias is None else super().added(x) + bias


@wrong("identity-at-init")
class ClaimsTransposedConvolutions(ConvLoRA):
    @classmethod
    def applies_to(cls, leaf):
        transposed = isinstance(leaf, eqx.nn.ConvTranspose) and eqx.is_inexact_array(leaf.weight)
        return transposed or super().applies_to(leaf)


def attending(inputs):
    """A call of the layer with `inputs(q, k, v, mask)`."""
    return lambda self, layer, *given, **options: layer(*inputs(*given), **options)


def without(option):
    """A call of the layer that drops this option."""
    return lambda self, layer, *inputs, **options: layer(
        *inputs, **{name: value for name, value in options.items() if name != option}
    )


by_call("ForgetsTheMask", AttentionLoRA, attend=attending(lambda q, k, v, mask: (q, k, v)))
by_call("ForgetsTheDropoutKey", AttentionLoRA, attend=without("key"))
by_call("ForgetsInference", AttentionLoRA, attend=without("inference"))
by_call(
    "TakesNoMask",
    AttentionLoRA,
    __call__=lambda self, query, key_, value: self.adapted(self.update())(query, key_, value),
)


@wrong(None, survives="no standard case hands over `process_heads`")
class TakesNoHeads(AttentionLoRA):
    def __call__(self, query, key_, value, mask=None, *, key=None, inference=None):
        adapted = self.adapted(self.update())
        return adapted(query, key_, value, mask, key=key, inference=inference)


by_call("AttendsToItself", AttentionLoRA, attend=attending(lambda q, k, v, mask: (q, q, q, mask)))
by_derivatives(
    "SwapsKeyAndValue", AttentionLoRA, attend=attending(lambda q, k, v, mask: (q, v, k, mask))
)
by_call(
    "InvertsTheMask",
    AttentionLoRA,
    attend=attending(lambda q, k, v, mask: (q, k, v, None if mask is None else ~mask)),
)


@wrong("merge-equals-call")
class DropoutHasAConstantKey(AttentionLoRA):
    def attend(self, layer, *inputs, key=None, **options):
        key = None if key is None else jax.random.key(0)
        return layer(*inputs, key=key, **options)


@wrong("input-derivatives")
class MergesIntoTheKeys(AttentionLoRA):
    def merge(self):
        W = float_of(self.base.key_proj.weight) + self.update()
        key_proj = with_weight(self.base.key_proj, W)
        return eqx.tree_at(lambda node: node.key_proj, self.base, key_proj)


# Instead of to its projection.
by_call(
    "AddsTheUpdateToTheQuery",
    AttentionLoRA,
    attend=lambda self, layer, query, *inputs, **options: self.base(
        query + query @ self.update().astype(query.dtype).T, *inputs, **options
    ),
)
