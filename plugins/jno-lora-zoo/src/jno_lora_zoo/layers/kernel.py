"""What the layers have in common whose weight is the kernel of a convolution."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._layer_kind import LayerKind, MeshAxes, at_least_float32, is_float_array, sharded_over


class KernelLayer(LayerKind):
    """A layer with a kernel `(out, in / groups, *kernel_size)`.

    The matrix is that kernel with all axes but the first flattened. With groups, `A` serves each
    of them and `B`'s rows are divided among them; every law then holds exactly as it stands.
    """

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
        kernel = matrix.astype(base.weight.dtype).reshape(base.weight.shape)
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
        return _convolve(self._frame(), x, self.base.weight)

    def down(self, x: Array, A: Float[Array, "r in"]) -> Array:
        return _down(self._frame(), x, A)

    def up(self, h: Array, B: Float[Array, "out r"]) -> Array:
        return _up(h, B)

    def low_rank(
        self, x: Array, A: Float[Array, "r in"], B: Float[Array, "out r"], scaling: float
    ) -> Array:
        weight = self.base.weight
        if weight.dtype.itemsize < 4:
            # The kernel would round away what is small beside it.
            return super().low_rank(x, A, B, scaling)
        A, B = A.astype(weight.dtype), B.astype(weight.dtype)
        return _merged_product(x, weight, A, B, frame=self._frame(), scaling=scaling)

    def mix(self, h: Array, R: Float[Array, "r r"]) -> Array:
        return jnp.einsum("sr,gr...->gs...", R.astype(h.dtype), h)

    def scale_rank(self, h: Array, d: Float[Array, " r"]) -> Array:
        return h * d.astype(h.dtype).reshape(1, -1, *(1,) * (h.ndim - 2))

    def scale_output(self, y: Array, v: Float[Array, " out"]) -> Array:
        return y * v.astype(y.dtype).reshape(-1, *(1,) * (y.ndim - 1))

    def rotate_output(self, y: Array, R: Float[Array, "blocks r r"]) -> Array:
        blocks, r, _ = R.shape
        padded = jnp.pad(y, ((0, blocks * r - y.shape[0]), *((0, 0),) * (y.ndim - 1)))
        rotated = jnp.einsum(
            "kij,kj...->ki...", R.astype(y.dtype), padded.reshape(blocks, r, *y.shape[1:])
        )
        return rotated.reshape(-1, *y.shape[1:])[: y.shape[0]]

    def rotates_output(self, block: int) -> bool:
        # Rows of one group share their inputs. A block that reaches into two groups mixes outputs
        # that the rotated kernel, which is grouped as well, cannot mix.
        out, groups = self.base.out_channels, self.base.groups
        return groups == 1 or (out // groups) % block == 0

    def finish(self, y: Array) -> Array:
        return y if self.base.bias is None else y + self.base.bias

    def _frame(self) -> Any:
        """The base without its arrays: how it pads, strides, dilates and groups."""
        return eqx.filter(self.base, eqx.is_array, inverse=True)


def _convolve(frame: Any, x: Array, kernel: Array) -> Array:
    """The base's own convolution with another kernel, and no bias."""
    bias = jnp.zeros((kernel.shape[0], *(1,) * (kernel.ndim - 2)), kernel.dtype)
    arrays = (kernel, bias) if frame.use_bias else (kernel, None)
    return eqx.tree_at(lambda m: (m.weight, m.bias), frame, arrays, is_leaf=lambda v: v is None)(x)


def _down(frame: Any, x: Array, A: Float[Array, "r in"]) -> Array:
    groups, r = frame.groups, A.shape[0]
    kernel = jnp.tile(A.astype(x.dtype), (groups, 1))
    h = _convolve(frame, x, kernel.reshape(groups * r, *kernel_shape(frame)[1:]))
    return h.reshape(groups, r, *h.shape[1:])


def _up(h: Array, B: Float[Array, "out r"]) -> Array:
    groups, r = h.shape[:2]
    y = jnp.einsum("gor,gr...->go...", B.astype(h.dtype).reshape(groups, -1, r), h)
    return y.reshape(-1, *h.shape[2:])


@eqx.filter_custom_jvp
def _merged_product(
    x: Array, weight: Array, A: Array, B: Array, *, frame: Any, scaling: float
) -> Array:
    """`(W + s B A) x` as one convolution, which is cheaper than two beside it.

    Differentiated as it stands it would compute the gradient of a whole kernel. The rule below has
    the factored one: its tangents of `A` and `B` go through `r` channels.
    """
    return _convolve(frame, x, _adapted(weight, A, B, scaling))


@_merged_product.def_jvp
def _merged_product_jvp(
    primals: Any, tangents: Any, *, frame: Any, scaling: float
) -> tuple[Array, Array | None]:
    (x, weight, A, B), (dx, dweight, dA, dB) = primals, tangents
    kernel = _adapted(weight, A, B, scaling)
    terms = [
        *([] if dx is None else [_convolve(frame, dx, kernel)]),
        *([] if dweight is None else [_convolve(frame, x, dweight)]),
        *([] if dA is None else [_up(_down(frame, x, dA), scaling * B)]),
        *([] if dB is None else [_up(_down(frame, x, A), scaling * dB)]),
    ]
    return _convolve(frame, x, kernel), sum(terms[1:], terms[0]) if terms else None


def _adapted(weight: Array, A: Array, B: Array, scaling: float) -> Array:
    return weight + scaling * (B @ A).reshape(weight.shape)


def kernel_shape(leaf: Any) -> tuple[Any, ...]:
    """The shape that the kernel of one layer must have, from what the layer says of itself."""
    sizes = leaf.kernel_size
    if isinstance(sizes, int):
        sizes = (sizes,) * getattr(leaf, "num_spatial_dims", leaf.weight.ndim - 2)
    return (leaf.out_channels, leaf.in_channels // getattr(leaf, "groups", 1), *sizes)
