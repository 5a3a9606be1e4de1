"""What the layers have in common whose weight is the kernel of a convolution."""

import copy
import math
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from .._layer_kind import (
    LayerKind,
    MeshAxes,
    at_least_float32,
    cast_like,
    is_float_array,
    scaled,
    sharded_over,
)


class KernelLayer(LayerKind):
    """A layer with a kernel `(out, in / groups, *kernel_size)`.

    The matrix is that kernel with all axes but the first flattened. With groups, `A` serves each
    of them and `B`'s rows are divided among them; every law then holds exactly as it stands.
    """

    merges_factors: ClassVar[bool] = True

    @classmethod
    def keeps_layout(cls, leaf: Any) -> bool:
        """Whether the weight is laid out as the layer's sizes say, after the axes of a stack."""
        shape = kernel_shape(leaf)
        return (
            is_float_array(leaf.weight)
            and 0 not in shape
            and leaf.weight.shape[-len(shape) :] == shape
        )

    @classmethod
    def stack_ndim(cls, leaf: Any) -> int:
        """The axes of the weight before `(out, in / groups, *kernel_size)`."""
        return leaf.weight.ndim - len(kernel_shape(leaf))

    @classmethod
    def matrix(cls, base: Any) -> Float[Array, "out in"]:
        return at_least_float32(base.weight).reshape(base.weight.shape[0], -1)

    @classmethod
    def with_matrix(cls, base: Any, matrix: Float[Array, "out in"]) -> eqx.Module:
        kernel = cast_like(matrix, base.weight).reshape(base.weight.shape)
        return eqx.tree_at(lambda m: m.weight, base, kernel)

    @classmethod
    def mesh_axes(cls, base: Any) -> MeshAxes:
        stack = cls.stack_ndim(base)
        axes = sharded_over(base.weight)
        # The kernel's inputs come first in a row of the matrix, so that a row is cut as they are,
        # unless the spatial axes are cut as well.
        inputs = axes[stack + 1] if not any(axes[stack + 2 :]) else None
        return MeshAxes(axes[:stack], axes[stack], inputs)

    def product(self, x: Array) -> Array:
        return _convolve(self._frame(), x, self._weight)

    def down(self, x: Array, A: Float[Array, "r in"]) -> Array:
        return _down(self._frame(), x, A)

    def up(self, h: Array, B: Float[Array, "out r"]) -> Array:
        return _up(self._frame(), h, B)

    def low_rank(
        self, x: Array, A: Float[Array, "r in"], B: Float[Array, "out r"], scaling: float
    ) -> Array:
        frame, weight = self._frame(), self._weight
        if weight.dtype.itemsize < 4:
            # The kernel would round away what is small beside it.
            return super().low_rank(x, A, B, scaling)
        A, B = A.astype(weight.dtype), scaling * B.astype(weight.dtype)
        if not is_narrow(frame, A.shape[0]):
            return _convolve(frame, x, _adapted(weight, A, B))
        return _merged_product(x, weight, A, B, frame=frame)

    def mix(self, h: Array, R: Float[Array, "r r"]) -> Array:
        return jnp.einsum("sr,gr...->gs...", R.astype(h.dtype), h)

    def scale_rank(self, h: Array, d: Float[Array, " r"]) -> Array:
        return scaled(h, d.reshape(1, -1, *(1,) * (h.ndim - 2)))

    def scale_output(self, y: Array, v: Float[Array, " out"]) -> Array:
        return scaled(y, v.reshape(-1, *(1,) * (y.ndim - 1)))

    def rotate_output(self, y: Array, R: Float[Array, "blocks r r"]) -> Array:
        return _rotated(y, R.astype(y.dtype))

    def rotated_product(self, x: Array, R: Float[Array, "blocks r r"]) -> Array:
        weight = self._weight
        if weight.dtype.itemsize < 4:
            return super().rotated_product(x, R)
        return _rotated_product(x, weight, R.astype(weight.dtype), frame=self._frame())

    def rotates_output(self, block: int) -> bool:
        # Rows of one group share their inputs. A block that reaches into two groups mixes outputs
        # that the rotated kernel, which is grouped as well, cannot mix.
        out, groups = self.base.out_channels, self.base.groups
        return groups == 1 or (out // groups) % block == 0

    def has_kronecker(self) -> bool:
        # The kernel would round away what is small beside it.
        return self._weight.dtype.itemsize < 4

    def kronecker(self, x: Array, A: Float[Array, "r r"], B: Float[Array, "p q"]) -> Array:
        # A kernel has no factors that a convolution could use one after the other.
        shape = self.base.weight.shape
        outputs, inputs = shape[0], math.prod(shape[1:])
        dtype = jnp.result_type(A.dtype, B.dtype)
        update = jnp.kron(A.astype(dtype), B.astype(dtype))[:outputs, :inputs]
        return _convolve(self._frame(), x, update.astype(x.dtype).reshape(shape))

    def finish(self, y: Array) -> Array:
        return y if self.base.bias is None else y + self.base.bias

    @property
    def _weight(self) -> Array:
        # NumPy's arrays too have a dtype of JAX then.
        return jnp.asarray(self.base.weight)

    def _frame(self) -> Any:
        """The base without its arrays: how it pads, strides, dilates and groups."""
        return eqx.filter(self.base, eqx.is_array, inverse=True)


def _convolve(frame: Any, x: Array, kernel: Array) -> Array:
    """The base's own convolution with another kernel, and no bias."""
    bias = jnp.zeros((kernel.shape[0], *(1,) * (kernel.ndim - 2)), kernel.dtype)
    arrays = (kernel, bias) if frame.use_bias else (kernel, None)
    return eqx.tree_at(lambda m: (m.weight, m.bias), frame, arrays, is_leaf=lambda v: v is None)(x)


def is_narrow(frame: Any, r: int) -> bool:
    """Whether `r` channels for each group are few: together at most half of the outputs.

    This picks the path of a convolution, by static shapes only. The derivative with respect to `A`
    and `B` costs two convolutions to those channels, forward and back, against one for the gradient
    of the whole kernel: with few channels the factored rule pays, with more (as in a depthwise
    convolution) the kernel is merged and differentiated as it stands. And with few channels one
    dense product with a block-diagonal `B` is faster than a product for each group.
    """
    return 2 * frame.groups * r <= frame.out_channels


def _down(frame: Any, x: Array, A: Float[Array, "r in"]) -> Array:
    # All groups have the same A, so that they can be samples of a batch. The kernel's gradient of a
    # convolution with groups takes ten times as long in XLA on a CPU.
    kernel = A.astype(x.dtype).reshape(A.shape[0], *kernel_shape(frame)[1:])
    groups = x.reshape(frame.groups, -1, *x.shape[1:])
    one = _with_one_group(frame)
    return jax.vmap(lambda group: _convolve(one, group, kernel))(groups)


def _up(frame: Any, h: Array, B: Float[Array, "out r"]) -> Array:
    groups, r, *sizes = h.shape
    B = B.astype(h.dtype).reshape(groups, -1, r)
    if groups > 1 and not is_narrow(frame, r):
        return jnp.einsum("gor,gr...->go...", B, h).reshape(-1, *sizes)
    # As a convolution, whose gradients use the same copies of `h` and of the outputs as those of
    # the kernel's do; copies for a product of matrices are copies of their own.
    diagonal = jnp.einsum("gor,gk->gokr", B, jnp.eye(groups, dtype=h.dtype))
    kernel = diagonal.reshape(-1, groups * r, *(1,) * len(sizes))
    y = lax.conv_general_dilated(h.reshape(1, -1, *sizes), kernel, (1,) * len(sizes), "VALID")
    return y[0]


def _with_one_group(frame: Any) -> Any:
    """The frame for the inputs of one group. Modules are frozen, but for a copy just made."""
    one = copy.copy(frame)
    object.__setattr__(one, "groups", 1)
    return one


@eqx.filter_custom_jvp
def _merged_product(x: Array, weight: Array, A: Array, B: Array, *, frame: Any) -> Array:
    """`(W + B A) x` as one convolution, which is cheaper than two beside it.

    Differentiated as it stands it would compute the gradient of a whole kernel. The rule below has
    the factored one: its tangents of `A` and `B` go through `r` channels.
    """
    return _convolve(frame, x, _adapted(weight, A, B))


@_merged_product.def_jvp
def _merged_product_jvp(primals: Any, tangents: Any, *, frame: Any) -> tuple[Array, Array | None]:
    (x, weight, A, B), (dx, dweight, dA, dB) = primals, tangents
    kernel = _adapted(weight, A, B)
    terms = [
        *([] if dx is None else [_convolve(frame, dx, kernel)]),
        *([] if dweight is None else [_convolve(frame, x, dweight)]),
        *([] if dA is None else [_up(frame, _down(frame, x, dA), B)]),
        *([] if dB is None else [_up(frame, _down(frame, x, A), dB)]),
    ]
    return _convolve(frame, x, kernel), sum(terms[1:], terms[0]) if terms else None


def _adapted(weight: Array, A: Array, B: Array) -> Array:
    return weight + (B @ A).reshape(weight.shape)


@eqx.filter_custom_jvp
def _rotated_product(x: Array, weight: Array, R: Array, *, frame: Any) -> Array:
    """`(R W) x` as one convolution: there are more outputs to rotate than rows of a kernel.

    Where it is differentiated the outputs are rotated all the same, since the gradient of `R` would
    else need that of a whole kernel.
    """
    return _convolve(frame, x, _rotated(weight, R))


@_rotated_product.def_jvp
def _rotated_product_jvp(primals: Any, tangents: Any, *, frame: Any) -> tuple[Array, Array | None]:
    def outputs_rotated(x: Array, weight: Array, R: Array) -> Array:
        return _rotated(_convolve(frame, x, weight), R)

    return eqx.filter_jvp(outputs_rotated, primals, tangents)


def _rotated(y: Array, R: Float[Array, "blocks r r"]) -> Array:
    """The first axis rotated in blocks, of which the last may reach beyond its end."""
    blocks, r, _ = R.shape
    padded = jnp.pad(y, ((0, blocks * r - y.shape[0]), *((0, 0),) * (y.ndim - 1)))
    rotated = jnp.einsum("kij,kj...->ki...", R, padded.reshape(blocks, r, *y.shape[1:]))
    return rotated.reshape(-1, *y.shape[1:])[: y.shape[0]]


def kernel_shape(leaf: Any) -> tuple[Any, ...]:
    """The shape that the kernel of one layer must have, from what the layer says of itself."""
    sizes = leaf.kernel_size
    if isinstance(sizes, int):
        sizes = (sizes,) * getattr(leaf, "num_spatial_dims", leaf.weight.ndim - 2)
    return (leaf.out_channels, leaf.in_channels // getattr(leaf, "groups", 1), *sizes)
