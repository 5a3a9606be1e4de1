"""Adapters that ignore what convolutions and attention can do beside a product."""

import jax
import jax.numpy as jnp
import numpy as np
from tests.core.good_adapter import float_of

from ._bases import AttentionLoRA, ConvLoRA, with_weight
from ._rows import wrong


@wrong("merge-equals-call")
class ForgetsDilation(ConvLoRA):
    """The call convolves the update without the layer's dilation."""

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


@wrong("merge-equals-call")
class ForgetsThePaddingMode(ConvLoRA):
    """The call pads the update's input with zeros, whatever the layer's padding mode is."""

    def added(self, x):
        return self.convolved(x, self.kernel(), padding=self.base.padding)


@wrong("state-round-trip")
class ForgetsTheStride(ConvLoRA):
    """The call convolves the update without the layer's stride."""

    def added(self, x):
        ones = (1,) * self.base.num_spatial_dims
        return self.convolved(x, self.kernel(), window_strides=ones)


@wrong("state-round-trip")
class ForgetsGroups(ConvLoRA):
    """The call convolves the update with one group."""

    def added(self, x):
        return self.convolved(x, self.kernel(), feature_group_count=1)


@wrong("input-derivatives")
class MixesUpGroups(ConvLoRA):
    """The call takes the groups of outputs in another order than the layer."""

    def added(self, x):
        kernel = self.kernel()
        groups = self.base.groups
        ordered = kernel.reshape(-1, groups, *kernel.shape[1:]).swapaxes(0, 1)
        return self.convolved(x, ordered.reshape(kernel.shape))


@wrong("law")
class FlipsTheKernel(ConvLoRA):
    """The call and `merge` flip the update's kernel, as in a mathematical convolution."""

    def kernel(self):
        kernel = super().kernel()
        return jnp.flip(kernel, tuple(range(2, kernel.ndim)))


@wrong("merge-equals-call")
class CallFlipsTheKernel(ConvLoRA):
    """The call flips the update's kernel, and `merge` does not."""

    def added(self, x):
        kernel = self.kernel()
        return self.convolved(x, jnp.flip(kernel, tuple(range(2, kernel.ndim))))


@wrong("law")
class OrdersTheAxesOtherwise(ConvLoRA):
    """The call and `merge` take the input channels for the last axis of the matrix."""

    def kernel(self):
        shape = self.base.weight.shape
        return jnp.moveaxis(self.update().reshape(shape[0], *shape[2:], shape[1]), -1, 1)


@wrong("input-derivatives")
class MergeOrdersTheAxesOtherwise(ConvLoRA):
    """`merge` takes the input channels for the last axis of the matrix."""

    def merge(self):
        shape = self.base.weight.shape
        kernel = jnp.moveaxis(self.update().reshape(shape[0], *shape[2:], shape[1]), -1, 1)
        return with_weight(self.base, float_of(self.base.weight) + kernel)


@wrong("merge-equals-call")
class PadsSymmetrically(ConvLoRA):
    """The call pads both sides of the update's input by the first number."""

    def added(self, x):
        y = super().added(x)
        padding = np.array(self.base.padding)
        return y if (padding[:, 0] == padding[:, 1]).all() else jnp.roll(y, 1, axis=-1)


@wrong("merge-equals-call")
class ConvolutionAddsTheBiasTwice(ConvLoRA):
    """The call of a convolution adds the bias a second time."""

    def added(self, x):
        bias = self.base.bias
        return super().added(x) if bias is None else super().added(x) + bias


@wrong("identity-at-init")
class ClaimsTransposedConvolutions(ConvLoRA):
    """Claims transposed convolutions, and convolves their input."""

    @classmethod
    def applies_to(cls, leaf):
        import equinox as eqx

        transposed = isinstance(leaf, eqx.nn.ConvTranspose) and eqx.is_inexact_array(leaf.weight)
        return transposed or super().applies_to(leaf)


@wrong("merge-equals-call")
class ForgetsTheMask(AttentionLoRA):
    """The call drops the mask."""

    def __call__(self, query, key_, value, mask=None, *, key=None, inference=None, **options):
        adapted = self.adapted(self.update())
        return adapted(query, key_, value, key=key, inference=inference, **options)


@wrong("merge-equals-call")
class ForgetsTheDropoutKey(AttentionLoRA):
    """The call drops the key of the dropout."""

    def __call__(self, query, key_, value, mask=None, *, key=None, inference=None, **options):
        adapted = self.adapted(self.update())
        return adapted(query, key_, value, mask, inference=inference, **options)


@wrong("merge-equals-call")
class TakesNoMask(AttentionLoRA):
    """The call takes query, key and value alone."""

    def __call__(self, query, key_, value):
        return self.adapted(self.update())(query, key_, value)


@wrong("merge-equals-call")
class ForgetsInference(AttentionLoRA):
    """The call drops `inference`."""

    def __call__(self, query, key_, value, mask=None, *, key=None, inference=None, **options):
        return self.adapted(self.update())(query, key_, value, mask, key=key, **options)


@wrong(None, survives="no standard case hands over `process_heads`")
class TakesNoHeads(AttentionLoRA):
    """The call does not take `process_heads`."""

    def __call__(self, query, key_, value, mask=None, *, key=None, inference=None):
        adapted = self.adapted(self.update())
        return adapted(query, key_, value, mask, key=key, inference=inference)


@wrong("merge-equals-call")
class AttendsToItself(AttentionLoRA):
    """The call takes the query for the key and the value."""

    def __call__(self, query, key_, value, mask=None, *, key=None, inference=None, **options):
        adapted = self.adapted(self.update())
        return adapted(query, query, query, mask, key=key, inference=inference, **options)


@wrong("input-derivatives")
class SwapsKeyAndValue(AttentionLoRA):
    """The call swaps key and value."""

    def __call__(self, query, key_, value, mask=None, *, key=None, inference=None, **options):
        adapted = self.adapted(self.update())
        return adapted(query, value, key_, mask, key=key, inference=inference, **options)


@wrong("input-derivatives")
class MergesIntoTheKeys(AttentionLoRA):
    """`merge` adds the update to the projection of the keys."""

    def merge(self):
        import equinox as eqx

        W = float_of(self.base.key_proj.weight) + self.update()
        key_proj = with_weight(self.base.key_proj, W)
        return eqx.tree_at(lambda node: node.key_proj, self.base, key_proj)


@wrong("merge-equals-call")
class AdaptsTheOutputOfHeads(AttentionLoRA):
    """The call adds the update to the query itself, not to its projection."""

    def __call__(self, query, key_, value, mask=None, *, key=None, inference=None, **options):
        update = self.update().astype(query.dtype)
        moved = query + query @ update.T
        return self.base(moved, key_, value, mask, key=key, inference=inference, **options)


@wrong("merge-equals-call")
class InvertsTheMask(AttentionLoRA):
    """The call takes `True` in the mask for a position to ignore."""

    def __call__(self, query, key_, value, mask=None, *, key=None, inference=None, **options):
        mask = None if mask is None else ~mask
        adapted = self.adapted(self.update())
        return adapted(query, key_, value, mask, key=key, inference=inference, **options)


@wrong("merge-equals-call")
class DropoutHasItsOwnKey(AttentionLoRA):
    """The call drops positions by a constant key."""

    def __call__(self, query, key_, value, mask=None, *, key=None, inference=None, **options):
        key = None if key is None else jax.random.key(0)
        adapted = self.adapted(self.update())
        return adapted(query, key_, value, mask, key=key, inference=inference, **options)
