"""Adapters that are wrong for certain inputs."""

import jax
import jax.numpy as jnp

from ._bases import EmbeddingLoRA, LoRA
from ._rows import wrong


@wrong("special-inputs")
class DividesByTheInput(LoRA):
    """The call divides by the length of the input and multiplies again: NaN for zeros."""

    def added(self, x):
        length = jnp.sqrt(jnp.sum(x * x))
        return super().added(x / length) * length


@wrong("input-derivatives")
class GradientIsNaNAtZeroInput(LoRA):
    """The value for zeros is right, and its derivative by the input is NaN."""

    def added(self, x):
        length = jnp.sqrt(jnp.sum(x * x))
        return super().added(x) + 0 * length


@wrong("special-inputs")
class ClipsTheInput(LoRA):
    """The call clips the input to `[-10, 10]`."""

    def added(self, x):
        return super().added(jnp.clip(x, -10, 10))


@wrong("special-inputs")
class ClipsTheTerm(LoRA):
    """The call clips what it adds to `[-50, 50]`."""

    def added(self, x):
        return jnp.clip(super().added(x), -50, 50)


@wrong("special-inputs")
class SaturatesForLargeInputs(LoRA):
    """The call goes through `tanh` and back, which gives infinity for large inputs."""

    def added(self, x):
        return super().added(jnp.arctanh(jnp.tanh(x)))


@wrong("input-derivatives")
class DropsNegativeInputs(LoRA):
    """The call takes negative inputs for zero."""

    def added(self, x):
        return super().added(jax.nn.relu(x))


@wrong("special-inputs")
class DropsNegativeVectors(LoRA):
    """The call ignores inputs that are negative altogether, as masked positions."""

    def added(self, x):
        return jnp.where(jnp.all(x < 0), 0, super().added(x))


@wrong("special-inputs")
class AddsAConstantForZeros(LoRA):
    """The call adds the sum of `B` for an input of zeros."""

    def added(self, x):
        constant = jnp.sum(self.lora_B).astype(x.dtype)
        return super().added(x) + jnp.where(jnp.all(x == 0), constant, 0)


@wrong("merge-equals-call")
class TakesZeroForPadding(EmbeddingLoRA):
    """The call takes the index 0 for padding, and adds nothing."""

    def rows(self, x):
        return jnp.where(x == 0, 0, 1) * super().rows(x)


@wrong("merge-gradients")
class LosesTheLastEntry(EmbeddingLoRA):
    """The call clips indices to `entries - 2`."""

    def rows(self, x):
        return super().rows(jnp.clip(x, None, self.base.num_embeddings - 2))


@wrong("merge-equals-call")
class CountsIndicesFromOne(EmbeddingLoRA):
    """The call and the table count from one and from zero."""

    def rows(self, x):
        return super().rows(x - 1)


@wrong("merge-equals-call")
class LosesNegativeIndices(EmbeddingLoRA):
    """A one-hot vector of the index -1 is zero, where the layer takes the last entry."""

    def rows(self, x):
        return jax.nn.one_hot(x, self.base.num_embeddings, dtype=self.lora_B.dtype) @ self.lora_B


@wrong("merge-equals-call")
class ClipsNegativeIndices(EmbeddingLoRA):
    """The call takes negative indices for 0."""

    def rows(self, x):
        return super().rows(jnp.maximum(x, 0))


@wrong("merge-gradients")
class TableForgetsTheScale(EmbeddingLoRA):
    """The call adds the row without the scale."""

    def added(self, x):
        return super().added(x) / self.scale()


@wrong("merge-gradients")
class TableReadsTransposed(EmbeddingLoRA):
    """`merge` reshapes `A^T B^T` to the table's shape instead of transposing."""

    def update(self):
        return self.scale() * (self.lora_A.T @ self.lora_B.T).reshape(self.base.weight.shape)


@wrong("state-round-trip")
class TableNeedsInt32(EmbeddingLoRA):
    """The row is found by a product of floats, which rounds the index in half precision."""

    def rows(self, x):
        return super().rows(x.astype(self.base.weight.dtype))
