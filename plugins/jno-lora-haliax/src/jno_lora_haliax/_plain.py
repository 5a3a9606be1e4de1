"""Haliax's layers as layers of Equinox, for files that know only plain arrays (PEFT's)."""

import equinox as eqx
import jax.numpy as jnp

from jno_lora_zoo import linear_layer, plain_layer, with_attributes

from ._classes import HaliaxEmbedding, HaliaxLinear
from .layers import HaliaxEmbeddingLayer, HaliaxLinearLayer, scaled_by_layer


@plain_layer.register(HaliaxLinear)
def _(layer: HaliaxLinear) -> HaliaxLinear | eqx.nn.Linear:
    if not HaliaxLinearLayer.fits(layer):
        return layer
    weight = scaled_by_layer(layer, HaliaxLinearLayer.stored_matrix(layer))
    bias = None if layer.bias is None else layer.bias.array.reshape(weight.shape[:-1])
    return linear_layer(weight, bias)


@plain_layer.register(HaliaxEmbedding)
def _(layer: HaliaxEmbedding) -> HaliaxEmbedding | eqx.nn.Embedding:
    if not HaliaxEmbeddingLayer.fits(layer):
        return layer
    columns = scaled_by_layer(layer, HaliaxEmbeddingLayer.stored_matrix(layer))
    table = jnp.swapaxes(columns, -1, -2)
    rows, size = table.shape[-2:]
    fields = {"weight": table, "num_embeddings": rows, "embedding_size": size}
    return with_attributes(object.__new__(eqx.nn.Embedding), fields)
