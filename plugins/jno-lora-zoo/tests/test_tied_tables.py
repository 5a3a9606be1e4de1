"""Models that read the table itself, and output heads that share it: who sees the adapter."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jno.lora import Net, lora_trainable_filter, merge_lora, unwrap_lora
from jno_lora_zoo import DoRAEmbedding, LoRAEmbedding

NUM, DIM = 9, 4
IDS = jnp.array([0, 5, 5, 8])


def trained(model):
    """`model` with something else than 0 in every `lora_B`."""
    return jax.tree.map(
        lambda trains, x: x + 0.2 if trains else x, lora_trainable_filter(model), model
    )


class Encoder(eqx.Module):
    """Reads `weight[ids]` and ties its head by hand."""

    embedding: eqx.nn.Embedding

    def __init__(self, key):
        self.embedding = eqx.nn.Embedding(NUM, DIM, key=key)

    def __call__(self, ids):
        h = jnp.tanh(self.embedding.weight[ids])
        return h @ self.embedding.weight.T


class TiedByShared(eqx.Module):
    """Ties table and head with `eqx.nn.Shared`; `owner` says which of them keeps the weight."""

    shared: eqx.nn.Shared

    def __init__(self, key, owner):
        one, two = jax.random.split(key)
        pair = (
            eqx.nn.Embedding(NUM, DIM, key=one),
            eqx.nn.Linear(DIM, NUM, use_bias=False, key=two),
        )
        if owner == "embedding":
            where, get = (lambda p: p[1].weight), (lambda p: p[0].weight)
        else:
            where, get = (lambda p: p[0].weight), (lambda p: p[1].weight)
        self.shared = eqx.nn.Shared(pair, where=where, get=get)

    def __call__(self, ids):
        embedding, head = self.shared()
        return jax.vmap(head)(jnp.tanh(jax.vmap(embedding)(ids)))


def both_sides(weight):
    return jnp.tanh(weight[IDS]) @ weight.T


@pytest.mark.parametrize("cls", [LoRAEmbedding, DoRAEmbedding])
def test_reading_the_weight_sees_the_adapter(cls, getkey):
    model = Encoder(getkey())
    adapted = trained(Net(model).lora(rank=2, wrapper=cls).module)
    assert (adapted.embedding.num_embeddings, adapted.embedding.embedding_size) == (NUM, DIM)
    weight = adapted.embedding.merge().weight
    assert not np.allclose(weight, model.embedding.weight, atol=1e-2)
    np.testing.assert_allclose(adapted(IDS), both_sides(weight), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(merge_lora(adapted)(IDS), adapted(IDS), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(unwrap_lora(adapted)(IDS), model(IDS))
    np.testing.assert_allclose(
        adapted.embedding(jnp.array(5)), adapted.embedding.weight[5], rtol=1e-5, atol=1e-6
    )


def test_the_side_of_a_tied_pair_with_the_weight_carries_the_adapter_and_both_see_it(getkey):
    model = TiedByShared(getkey(), "embedding")
    # Both kinds are asked for; the head holds a placeholder and is nobody's.
    adapted = Net(model).lora(rank=2, wrapper=["LoRALinear", LoRAEmbedding]).module
    embedding, head = adapted.shared.pytree
    assert type(embedding) is LoRAEmbedding and type(head) is eqx.nn.Linear
    np.testing.assert_allclose(adapted(IDS), model(IDS), rtol=1e-5, atol=1e-6)

    adapted = trained(adapted)
    weight = adapted.shared.pytree[0].merge().weight
    np.testing.assert_allclose(adapted.shared()[1].weight, weight)
    np.testing.assert_allclose(adapted(IDS), both_sides(weight), rtol=1e-5, atol=1e-6)
    merged = merge_lora(adapted)
    assert jax.tree.structure(merged) == jax.tree.structure(model)
    np.testing.assert_allclose(merged(IDS), adapted(IDS), rtol=1e-5, atol=1e-6)


def test_if_the_head_keeps_the_weight_a_linear_adapter_serves_both(getkey):
    model = TiedByShared(getkey(), "head")
    adapted = trained(Net(model).lora(rank=2, wrapper=["LoRALinear", LoRAEmbedding]).module)
    embedding, head = adapted.shared.pytree
    assert type(embedding) is eqx.nn.Embedding and type(head).__name__ == "LoRALinear"
    np.testing.assert_allclose(adapted(IDS), both_sides(head.merge().weight), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("make", [Encoder, lambda key: TiedByShared(key, "embedding")])
def test_both_sides_train_the_one_adapter(make, getkey):
    net = Net(make(getkey())).freeze().lora(rank=3, alpha=3, wrapper=LoRAEmbedding)
    trainable, frozen = net.partition()
    labels = jax.nn.one_hot(jnp.array([1, 2, 2, 3]), NUM)

    @jax.jit
    @jax.value_and_grad
    def loss(trainable):
        logits = eqx.combine(trainable, frozen)(IDS)
        return -jnp.mean(jnp.sum(labels * jax.nn.log_softmax(logits), axis=-1))

    first, grads = loss(trainable)
    assert len(jax.tree.leaves(grads)) == 2
    for _ in range(40):
        _, grads = loss(trainable)
        trainable = jax.tree.map(lambda p, g: p - 0.5 * g, trainable, grads)
    assert loss(trainable)[0] < 0.5 * first
