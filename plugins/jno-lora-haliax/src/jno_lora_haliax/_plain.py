"""Haliax's layers as layers with plain arrays, for files that know only such layers (PEFT's)."""

import dataclasses
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from jno_lora_zoo import plain_layer

from ._classes import HaliaxEmbedding, HaliaxLinear
from .layers import HaliaxEmbeddingLayer, HaliaxLinearLayer, scaled_by_layer


@dataclasses.dataclass(frozen=True)
class PlainLinear:
    """A linear layer, or a stack of them."""

    weight: Float[Array, "*stack out in"]
    bias: Float[Array, "*stack out"] | None

    def linear_features(self) -> tuple[int, int]:
        """The numbers of outputs and inputs."""
        outputs, inputs = self.weight.shape[-2:]
        return outputs, inputs


@dataclasses.dataclass(frozen=True)
class PlainEmbedding:
    """An embedding, or a stack of them."""

    weight: Float[Array, "*stack rows size"]
    num_embeddings: int
    embedding_size: int


@plain_layer.register(HaliaxLinear)
def _(layer: Any) -> Any:
    if not HaliaxLinearLayer.fits(layer):
        return layer
    weight = scaled_by_layer(layer, HaliaxLinearLayer.stored_matrix(layer))
    bias = None if layer.bias is None else layer.bias.array.reshape(weight.shape[:-1])
    return PlainLinear(weight, bias)


@plain_layer.register(HaliaxEmbedding)
def _(layer: Any) -> Any:
    if not HaliaxEmbeddingLayer.fits(layer):
        return layer
    columns = scaled_by_layer(layer, HaliaxEmbeddingLayer.stored_matrix(layer))
    weight = jnp.swapaxes(columns, -1, -2)
    return PlainEmbedding(weight, *weight.shape[-2:])
