"""Correct adapters in small methods, so that a wrong adapter changes a single method."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from tests.core.good_adapter import Good, float_of

from jno.lora import LowRankForm, MatrixAdapter


def with_weight(layer, weight):
    """`layer` with this weight, in the dtype of its weight."""
    return eqx.tree_at(lambda node: node.weight, layer, weight.astype(layer.weight.dtype))


def with_bias(layer, bias):
    return eqx.tree_at(lambda node: node.bias, layer, bias)


def copy_of(layer, cls, **changes):
    """A module of class `cls` with the fields of `layer` and these changes."""
    copied = object.__new__(cls)
    for name, value in {**vars(layer), **changes}.items():
        object.__setattr__(copied, name, value)
    return copied


def numbers(array):
    """An array as NumPy numbers of double precision, for laws."""
    is_complex = jnp.iscomplexobj(array)
    return np.asarray(array).astype(np.complex128 if is_complex else np.float64)


class LoRA(Good):
    """`W + alpha / rank B A` for `eqx.nn.Linear`."""

    @classmethod
    def matrix(cls, layer):
        return float_of(layer.weight)

    @classmethod
    def low_rank_scale(cls, rank, alpha):
        return alpha / rank

    def low_rank_form(self):
        A, B = self.factors()
        return LowRankForm(A, self.scale() * B)

    @classmethod
    def start(cls, W, rank, key):
        A = jax.random.normal(key, (rank, W.shape[1]), W.dtype)
        return A, cls.first_B(W, rank, key)

    @classmethod
    def first_B(cls, W, rank, key):
        return jnp.zeros((W.shape[0], rank), W.dtype)

    def __init__(self, base, rank, alpha, *, key):
        self.base, self.rank, self.alpha = base, rank, alpha
        self.lora_A, self.lora_B = type(self).start(float_of(base.weight), rank, key)

    def scale(self):
        return self.alpha / self.rank

    def factors(self):
        """`A` and `B`, of the call and of `merge`."""
        return self.lora_A, self.lora_B

    def product(self, x, A, B):
        """`alpha / rank B A x`, in the dtype of `x`."""
        return self.scale() * (B.astype(x.dtype) @ (A.astype(x.dtype) @ x))

    def added(self, x):
        return self.product(x, *self.factors())

    def update(self):
        A, B = self.factors()
        return self.scale() * (B @ A)

    def __call__(self, x):
        return self.base(x) + self.added(x)

    def merge(self):
        return with_weight(self.base, float_of(self.base.weight) + self.update())


def term(change):
    """The method `added` of `LoRA`, whose output is changed."""
    return lambda self, x: change(LoRA.added(self, x))


def fed(change):
    """The method `added` of `LoRA`, whose input is changed."""
    return lambda self, x: LoRA.added(self, change(x))


def updated(change):
    """The method `update` of `LoRA`, whose matrix is changed."""
    return lambda self: change(LoRA.update(self))


def with_tangent(function, tangent_of):
    """A function with this tangent, `tangent_of(primals, tangents)`."""
    function = jax.custom_jvp(function)
    function.defjvp(lambda primals, tangents: (function(*primals), tangent_of(primals, tangents)))
    return function


def lora_law(adapter, rank, alpha):
    return sum_of(adapter, alpha / rank, adapter.lora_A, numbers(adapter.lora_B))


def sum_of(adapter, scale, A, B):
    return numbers(adapter.base.weight) + scale * (B @ numbers(A))


def gated_law(adapter, rank, alpha):
    B = numbers(adapter.lora_B) * numbers(adapter.gate)
    return sum_of(adapter, alpha / rank, adapter.lora_A, B)


def tied_law(adapter, rank, alpha):
    A = adapter.low_rank_form().A
    return sum_of(adapter, alpha / rank, A, numbers(adapter.lora_B))


class Frozen(LoRA):
    """`W + alpha / rank B diag(scales) A` with random frozen scales."""

    scales: jax.Array

    @classmethod
    def low_rank_scale(cls, rank, alpha):
        return None

    def factors(self):
        return self.lora_A, self.lora_B * self.scales[None, :]

    def __init__(self, base, rank, alpha, *, key):
        super().__init__(base, rank, alpha, key=key)
        self.scales = 1 + jax.random.uniform(jax.random.fold_in(key, 1), (rank,), self.lora_A.dtype)


def frozen_law(adapter, rank, alpha):
    B = numbers(adapter.lora_B) * numbers(adapter.scales)
    return sum_of(adapter, alpha / rank, adapter.lora_A, B)


class Magnitude(LoRA):
    """DoRA: `m V / |V|` with the norms of the rows of `V = W + alpha / rank B A`."""

    adapter_fields = ("lora_A", "lora_B", "magnitude")
    magnitude: jax.Array

    @classmethod
    def low_rank_scale(cls, rank, alpha):
        return None

    def low_rank_form(self):
        V = float_of(self.base.weight) + self.update()
        gain = self.magnitude / self.norms(V)
        return LowRankForm(self.lora_A, self.scale() * self.lora_B, gain=gain)

    @classmethod
    def norms(cls, V):
        """The norm of each row, and 1 for rows of zeros."""
        squares = jnp.sum(V * V, axis=1)
        is_zero = squares == 0
        return jnp.where(is_zero, 1, jnp.sqrt(jnp.where(is_zero, 1, squares)))

    def __init__(self, base, rank, alpha, *, key):
        super().__init__(base, rank, alpha, key=key)
        self.magnitude = self.norms(float_of(base.weight))

    def weight_in(self, dtype):
        V = float_of(self.base.weight) + self.update()
        return ((self.magnitude / self.norms(V))[:, None] * V).astype(dtype)

    def __call__(self, x):
        return with_weight(self.base, self.weight_in(x.dtype))(x)

    def merge(self):
        return with_weight(self.base, self.weight_in(self.magnitude.dtype))


def magnitude_law(adapter, rank, alpha):
    V = lora_law(adapter, rank, alpha)
    return (numbers(adapter.magnitude) / np.linalg.norm(V, axis=1))[:, None] * V


def is_exactly(layer, cls, ndim=None):
    """Whether `layer` is a single layer of this class with an array."""
    is_plain = type(layer) is cls and eqx.is_inexact_array(layer.weight)
    return is_plain and (ndim is None or layer.weight.ndim == ndim)


class ConvLoRA(LoRA):
    """`W + alpha / rank B A` for the kernel of `eqx.nn.Conv`, as a matrix `(out, in k)`."""

    base: eqx.nn.Conv

    @classmethod
    def applies_to(cls, leaf):
        convolutions = (eqx.nn.Conv, eqx.nn.Conv1d, eqx.nn.Conv2d)
        is_convolution = type(leaf) in convolutions and eqx.is_inexact_array(leaf.weight)
        return is_convolution and leaf.weight.ndim == leaf.num_spatial_dims + 2

    @classmethod
    def stack_ndim(cls, leaf):
        return 0

    @classmethod
    def matrix(cls, layer):
        return float_of(layer.weight).reshape(len(layer.weight), -1)

    @classmethod
    def start(cls, W, rank, key):
        return super().start(W.reshape(len(W), -1), rank, key)

    def kernel(self):
        return self.update().reshape(self.base.weight.shape)

    def added(self, x):
        return self.convolved(x, self.kernel())

    def convolved(self, x, kernel, **changes):
        """The convolution with this kernel, by the settings of the layer and these changes."""
        base = self.base
        settings = {
            "padding": base.padding,
            "rhs_dilation": base.dilation,
            "window_strides": base.stride,
            "feature_group_count": base.groups,
        }
        if base.padding_mode != "ZEROS" and "padding" not in changes:
            x, settings["padding"] = base._nonzero_pad(x), "VALID"
        kernel = kernel.astype(x.dtype)
        return lax.conv_general_dilated(x[None], kernel, **{**settings, **changes})[0]

    def merge(self):
        return with_weight(self.base, float_of(self.base.weight) + self.kernel())


def conv_law(adapter, rank, alpha):
    A, B = numbers(adapter.lora_A), numbers(adapter.lora_B)
    W = numbers(adapter.base.weight)
    return W + alpha / rank * (B @ A).reshape(W.shape)


class EmbeddingLoRA(LoRA):
    """`W + alpha / rank B A` for the table of `eqx.nn.Embedding`, `(entries, size)`."""

    factor_sides = {}  # noqa: RUF012
    base: eqx.nn.Embedding

    @classmethod
    def applies_to(cls, leaf):
        return is_exactly(leaf, eqx.nn.Embedding, 2)

    @classmethod
    def stack_ndim(cls, leaf):
        return 0

    @classmethod
    def matrix(cls, layer):
        return float_of(layer.weight).T

    @classmethod
    def low_rank_scale(cls, rank, alpha):
        return None

    def low_rank_form(self):
        return LowRankForm(self.lora_B.T, self.scale() * self.lora_A.T)

    def added(self, x):
        dtype = self.base.weight.dtype
        row = self.rows(x).astype(dtype)
        return self.scale() * (row @ self.lora_A.astype(dtype))

    def rows(self, x):
        """The row of `B` of this index."""
        return self.lora_B[x]


class AttentionLoRA(LoRA):
    """`W + alpha / rank B A` for the projection of the queries in `eqx.nn.MultiheadAttention`."""

    base: eqx.nn.MultiheadAttention

    @classmethod
    def applies_to(cls, leaf):
        is_attention = type(leaf) is eqx.nn.MultiheadAttention
        return is_attention and is_exactly(leaf.query_proj, eqx.nn.Linear, 2)

    @classmethod
    def stack_ndim(cls, leaf):
        return 0

    @classmethod
    def matrix(cls, layer):
        return float_of(layer.query_proj.weight)

    def __init__(self, base, rank, alpha, *, key):
        self.base, self.rank, self.alpha = base, rank, alpha
        W = float_of(base.query_proj.weight)
        self.lora_A, self.lora_B = type(self).start(W, rank, key)

    def __call__(self, query, key_, value, mask=None, **options):
        layer = self.adapted(self.update())
        return self.attend(layer, query, key_, value, mask, **options)

    def attend(self, layer, *inputs, **options):
        return layer(*inputs, **options)

    def adapted(self, update):
        W = float_of(self.base.query_proj.weight) + update
        query_proj = with_weight(self.base.query_proj, W)
        return eqx.tree_at(lambda node: node.query_proj, self.base, query_proj)

    def merge(self):
        return self.adapted(self.update())


def attention_law(adapter, rank, alpha):
    A, B = numbers(adapter.lora_A), numbers(adapter.lora_B)
    query_proj = adapter.base.query_proj
    W = numbers(query_proj.weight) + alpha / rank * (B @ A)
    return {"query_proj": with_weight(query_proj, jnp.asarray(W, jnp.float32))}


class ComplexLinear(eqx.Module):
    """A linear layer with a complex weight, which gives the real and the imaginary parts."""

    weight: jax.Array

    def __call__(self, x):
        y = self.weight @ x.astype(self.weight.dtype)
        return jnp.concatenate([y.real, y.imag]).astype(x.dtype)


class ComplexLoRA(MatrixAdapter):
    adapter_fields = ("lora_A", "lora_B")
    base: ComplexLinear
    lora_A: jax.Array
    lora_B: jax.Array
    rank: int = eqx.field(static=True)
    alpha: float = eqx.field(static=True)

    @classmethod
    def applies_to(cls, leaf):
        return is_exactly(leaf, ComplexLinear, 2)

    def __init__(self, base, rank, alpha, *, key):
        self.base, self.rank, self.alpha = base, rank, alpha
        outputs, inputs = base.weight.shape
        self.lora_A = jax.random.normal(key, (rank, inputs), base.weight.dtype)
        self.lora_B = jnp.zeros((outputs, rank), base.weight.dtype)

    def scale(self):
        return self.alpha / self.rank

    def update(self):
        return self.scale() * (self.lora_B @ self.lora_A)

    def product(self, x):
        return self.scale() * (self.lora_B @ (self.lora_A @ x))

    def added(self, x):
        y = self.product(x.astype(self.lora_A.dtype))
        return jnp.concatenate([y.real, y.imag]).astype(x.dtype)

    def __call__(self, x):
        return self.base(x) + self.added(x)

    def merge(self):
        return with_weight(self.base, self.base.weight + self.update())
