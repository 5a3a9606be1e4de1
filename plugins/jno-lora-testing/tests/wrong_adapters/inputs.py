"""Adapters that are wrong for certain inputs."""

import jax
import jax.numpy as jnp

from ._bases import EmbeddingLoRA, LoRA, fed, term
from ._rows import changed, noticed_by, wrong

by_call = noticed_by("merge-equals-call")
by_derivatives = noticed_by("input-derivatives")
by_inputs = noticed_by("special-inputs")
by_merged_gradients = noticed_by("merge-gradients")


@wrong("special-inputs")
class DividesByTheInput(LoRA):
    def added(self, x):
        length = jnp.sqrt(jnp.sum(x * x))
        return super().added(x / length) * length


by_derivatives(
    "GradientIsNaNAtZeroInput",
    added=lambda self, x: LoRA.added(self, x) + 0 * jnp.sqrt(jnp.sum(x * x)),
)
by_inputs("ClipsTheInput", added=fed(lambda x: jnp.clip(x, -10, 10)))
by_inputs("ClipsTheTerm", added=term(lambda y: jnp.clip(y, -50, 50)))
by_inputs(
    "SaturatesForLargeInputs", added=lambda self, x: LoRA.added(self, jnp.arctanh(jnp.tanh(x)))
)
by_derivatives("DropsNegativeInputs", added=fed(jax.nn.relu))
by_inputs(
    "DropsNegativeVectors", added=lambda self, x: jnp.where(jnp.all(x < 0), 0, LoRA.added(self, x))
)


@wrong("special-inputs", says="For inputs of zeros")
class AddsAConstantForZeros(LoRA):
    def added(self, x):
        constant = jnp.sum(self.lora_B).astype(x.dtype)
        return super().added(x) + jnp.where(jnp.all(x == 0), constant, 0)


def rows(index_of):
    """The rows at these indices of `index_of(self, x)`."""
    return lambda self, x: EmbeddingLoRA.rows(self, index_of(self, x))


by_call(
    "TakesZeroForPadding",
    EmbeddingLoRA,
    rows=lambda self, x: jnp.where(x == 0, 0, 1) * EmbeddingLoRA.rows(self, x),
)
by_merged_gradients(
    "LosesTheLastEntry",
    EmbeddingLoRA,
    rows=rows(lambda self, x: jnp.clip(x, None, self.base.num_embeddings - 2)),
)
by_call("CountsIndicesFromOne", EmbeddingLoRA, rows=rows(lambda self, x: x - 1))
# A one-hot vector of the index -1 is zero, where the layer takes the last entry.
by_call(
    "LosesNegativeIndices",
    EmbeddingLoRA,
    rows=lambda self, x: jax.nn.one_hot(x, len(self.lora_B), dtype=self.lora_B.dtype) @ self.lora_B,
)
by_call("ClipsNegativeIndices", EmbeddingLoRA, rows=rows(lambda self, x: jnp.maximum(x, 0)))
# Half precision rounds the index.
changed(
    "state-round-trip",
    "TableNeedsInt32",
    EmbeddingLoRA,
    rows=rows(lambda self, x: x.astype(self.base.weight.dtype)),
)
by_merged_gradients(
    "TableForgetsTheScale",
    EmbeddingLoRA,
    added=lambda self, x: EmbeddingLoRA.added(self, x) / self.scale(),
)


# `merge` reshapes `A^T B^T` to the table's shape instead of transposing.
by_merged_gradients(
    "TableReadsTransposed",
    EmbeddingLoRA,
    update=lambda self: (
        self.scale() * (self.lora_A.T @ self.lora_B.T).reshape(self.base.weight.shape)
    ),
)
