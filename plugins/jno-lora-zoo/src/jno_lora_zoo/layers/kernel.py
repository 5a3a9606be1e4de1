"""Layers with a convolution kernel as their weight."""

import copy
import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jno.lora import WrapperError
from jno.lora.extending import class_of, is_coded

from .._arrays import (
    Matrix,
    cast_like,
    dtype_of,
    in_compute_dtype,
    in_form_of,
    is_float_array,
    sharded_over,
)
from .._derivatives import differentiated_by
from .._layer_kind import Bias, Factor, LayerKind, Map, MeshAxes, T, Update, unchanged

# A convolution without its arrays: how it pads, strides, dilates and groups.
Frame: TypeAlias = eqx.nn.Conv | eqx.nn.ConvTranspose


class KernelLayer(LayerKind):
    """A layer with a kernel `(out, in / groups, *kernel_size)`.

    The matrix is the kernel with all axes but the first flattened. With groups, all groups share
    `A` and the rows of `B` are divided among the groups, so that every law applies unchanged.
    """

    weight_axes = "oi..."
    # The classes whose `__call__` the operations reproduce.
    exact_classes: ClassVar[tuple[type, ...]] = ()

    @classmethod
    def keeps_layout(cls, leaf: Any) -> bool:
        """Whether the weight's layout matches the layer's sizes, after any stack axes."""
        weight, shape = leaf.weight, kernel_shape(leaf)
        return is_float_array(weight) and 0 not in shape and weight.shape[-len(shape) :] == shape

    @classmethod
    def stack_ndim(cls, leaf: Any) -> int:
        return leaf.weight.ndim - len(kernel_shape(leaf))

    @classmethod
    def matrix(cls, layer: Any) -> Matrix:
        return in_compute_dtype(layer.weight).reshape(layer.weight.shape[0], -1)

    @classmethod
    def with_matrix(cls, base: Any, matrix: Matrix) -> eqx.Module:
        return eqx.tree_at(lambda m: m.weight, base, in_form_of(matrix, base.weight))

    @classmethod
    def inputs_of(cls, layer: Any, *args: Any, **kwargs: Any) -> Float[Array, "n in"]:
        """The patches of all groups and positions, as outputs of kernels with a single 1."""
        if class_of(layer) not in cls.exact_classes:
            raise WrapperError(f"the inputs of a {type(layer).__name__} are not known as patches")
        frame = eqx.filter(layer, eqx.is_array, inverse=True)
        width = cls.matrix(layer).shape[1]
        patches = _down(frame, args[0], jnp.eye(width, dtype=args[0].dtype))
        return patches.reshape(width, -1).T

    @classmethod
    def outputs_of(cls, layer: Any, y: Any) -> Float[Array, "n out"]:
        return super().outputs_of(layer, jnp.moveaxis(y, 0, -1))

    @classmethod
    def mesh_axes(cls, base: Any) -> MeshAxes:
        stack = cls.stack_ndim(base)
        axes = sharded_over(base.weight)
        # The inputs are the slowest axis of a row of the matrix, so a row is sharded like the
        # inputs, unless the spatial axes are sharded as well.
        inputs = axes[stack + 1] if not any(axes[stack + 2 :]) else None
        return MeshAxes(axes[:stack], axes[stack], inputs)

    @classmethod
    def group_size(cls, base: Any) -> int | None:
        return None if base.groups == 1 else base.out_channels // base.groups

    def computes(self, x: object) -> bool:
        return class_of(self.base) in self.exact_classes

    def reads_features(self) -> bool:
        return self.base.groups == 1 and set(kernel_shape(self.base)[2:]) == {1}

    def product(self, x: Array, before: Map = unchanged) -> Array:
        weight = self.base.weight
        if is_coded(weight):
            return weight.applied(_Convolution(self._frame()), before(x))
        return _convolve(self._frame(), before(x), self._weight)

    def down(self, x: Array, A: Factor) -> Array:
        return _down(self._frame(), x, A)

    def low_rank(
        self,
        x: Array,
        A: Factor,
        B: Factor,
        between: Map = unchanged,
        after: Map = unchanged,
        seen: Array | None = None,
    ) -> Array:
        frame = self._frame()
        if self._rounds or seen is not None:
            h = _down(frame, x if seen is None else seen, A)
            return self.product(x) + after(_up(frame, between(h), B))
        weight = self._weight
        A, B = between(A.astype(weight.dtype)), after(B.astype(weight.dtype))
        if is_narrow(frame, A.shape[0]):
            return _merged_product(x, weight, A, B, frame=frame)
        return _convolve(frame, x, _adapted(weight, A, B))

    def on_output(self, x: Array, f: Callable[[Array, T], Array], p: T) -> Array:
        if self._rounds:
            return f(self.product(x), p)
        return _with_rows_changed(x, self._weight, p, f=f, frame=self._frame())

    def plus(self, x: Array, U: Update) -> Array:
        update = cast_like(U.matrix(), self.base.weight).reshape(self.base.weight.shape)
        if self._rounds:
            return self.product(x) + _convolve(self._frame(), x, update)
        return _convolve(self._frame(), x, self._weight + update)

    def finish(self, y: Array, b: Bias | None) -> Array:
        return y if b is None else y + b.reshape(-1, *(1,) * (y.ndim - 1))

    @property
    def _weight(self) -> Array:
        return jnp.asarray(self.base.weight)  # so that NumPy arrays also get a JAX dtype

    @property
    def _rounds(self) -> bool:
        """Whether the kernel would round away a small update, or is coded."""
        weight = self.base.weight
        return is_coded(weight) or dtype_of(weight).itemsize < 4

    def _frame(self) -> Frame:
        return eqx.filter(self.base, eqx.is_array, inverse=True)


def _convolve(frame: Frame, x: Array, kernel: Array) -> Array:
    """The convolution of the base, with another kernel and without a bias."""
    bias = jnp.zeros((kernel.shape[0], *(1,) * (kernel.ndim - 2)), kernel.dtype)
    arrays = (kernel, bias) if frame.use_bias else (kernel, None)
    return eqx.tree_at(lambda m: (m.weight, m.bias), frame, arrays, is_leaf=lambda v: v is None)(x)


@dataclasses.dataclass(frozen=True)
class _Convolution:
    """`_convolve` as a function of kernel and input. Equal for layers that convolve alike."""

    frame: Frame

    def __call__(self, kernel: Array, x: Array) -> Array:
        return _convolve(self.frame, x, kernel)


def is_narrow(frame: Frame, r: int) -> bool:
    """Whether `r` channels for each group are few: together at most half of the outputs.

    The derivative with respect to `A` and `B` costs two convolutions to those channels, compared
    with one for the gradient of the whole kernel, so the factored rule pays off with few channels.
    With few channels, one dense product with a block-diagonal `B` is also faster than a product for
    each group.
    """
    return 2 * frame.groups * r <= frame.out_channels


def _down(frame: Frame, x: Array, A: Float[Array, "r in"]) -> Float[Array, "r groups *sizes"]:
    # All groups have the same A, so they can be treated as a batch. On a CPU, XLA takes ten times
    # as long for the kernel's gradient of a convolution with groups.
    kernel = A.astype(x.dtype).reshape(A.shape[0], *kernel_shape(frame)[1:])
    groups = x.reshape(frame.groups, -1, *x.shape[1:])
    ungrouped = copy.copy(frame)
    object.__setattr__(ungrouped, "groups", 1)
    h = jax.vmap(lambda group: _convolve(ungrouped, group, kernel))(groups)
    return jnp.swapaxes(h, 0, 1)


def _up(frame: Frame, h: Array, B: Float[Array, "out r"]) -> Array:
    r, groups, *sizes = h.shape
    B = B.astype(h.dtype).reshape(groups, -1, r)
    if groups > 1 and not is_narrow(frame, r):
        return jnp.einsum("gor,rg...->go...", B, h).reshape(-1, *sizes)
    # A convolution shares its copies of `h` and of the outputs with the kernel's gradient, while a
    # matrix product would need more copies.
    diagonal = jnp.einsum("gor,gk->gork", B, jnp.eye(groups, dtype=h.dtype))
    kernel = diagonal.reshape(-1, r * groups, *(1,) * len(sizes))
    y = lax.conv_general_dilated(h.reshape(1, -1, *sizes), kernel, (1,) * len(sizes), "VALID")
    return y[0]


def _merged_product_rule(
    y: Array, primals: Any, tangents: Any, *, frame: Frame
) -> tuple[Array, Array | None]:
    """Derivatives through `r` channels for `A` and `B`, instead of through the whole kernel."""
    (x, weight, A, B), (dx, dweight, dA, dB) = primals, tangents
    # `dx` does not go through a rule: since JAX 0.12, a function with a rule that gets one tangent
    # returns only tangents, such as the kernel's, and a product of two tangents cannot be
    # transposed.
    terms = [
        *([] if dx is None else [_convolve(frame, dx, _adapted(weight, A, B))]),
        *([] if dweight is None else [_convolve(frame, x, dweight)]),
        *([] if dA is None else [_up(frame, _down(frame, x, dA), B)]),
        *([] if dB is None else [_up(frame, _down(frame, x, A), dB)]),
    ]
    return y, sum(terms[1:], terms[0]) if terms else None


@differentiated_by(_merged_product_rule)
def _merged_product(x: Array, weight: Array, A: Array, B: Array, *, frame: Frame) -> Array:
    """`(W + B A) x` as one convolution, which is cheaper than two beside it."""
    return _convolve(frame, x, _adapted(weight, A, B))


def _adapted(weight: Array, A: Array, B: Array) -> Array:
    return weight + (B @ A).reshape(weight.shape)


def _with_rows_changed_rule(
    y: Array, primals: Any, tangents: Any, *, f: Any, frame: Frame
) -> tuple[Array, Array | None]:
    """The value and derivative of `f(W x, p)`, without the derivative of the whole kernel."""

    def outputs_changed(x: Array, weight: Array, p: Any) -> Array:
        return f(_convolve(frame, x, weight), p)

    return eqx.filter_jvp(outputs_changed, primals, tangents)


@differentiated_by(_with_rows_changed_rule)
def _with_rows_changed(x: Array, weight: Array, p: Any, *, f: Any, frame: Frame) -> Array:
    """`f(W, p) x` as one convolution, because a kernel has fewer numbers than the outputs."""
    return _convolve(frame, x, f(weight, p))


def kernel_shape(leaf: Any) -> tuple[Any, ...]:
    """The required shape of a layer's kernel, from the layer's sizes."""
    sizes = leaf.kernel_size
    if isinstance(sizes, int):
        sizes = (sizes,) * getattr(leaf, "num_spatial_dims", leaf.weight.ndim - 2)
    return (leaf.out_channels, leaf.in_channels // getattr(leaf, "groups", 1), *sizes)
