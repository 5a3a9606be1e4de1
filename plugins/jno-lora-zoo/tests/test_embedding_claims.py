"""Which layers are embeddings, and how the adapters are found."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jno.lora import (
    Net,
    SelectionError,
    WrapperError,
    apply_lora,
    calibrate,
    plan_lora,
    to_lora,
)
from jno_lora_zoo import CorDA, EmbeddingLayer, LoRAEmbedding, PiSSAEmbedding

NUM, DIM, RANK = 11, 6, 4


def table(key):
    return eqx.nn.Embedding(NUM, DIM, key=key)


def with_update(wrapper, key):
    B = jax.random.normal(key, wrapper.lora_B.shape)
    return eqx.tree_at(lambda w: w.lora_B, wrapper, B)


class DuckEmbedding(eqx.Module):
    """Somebody's own: a whole sequence at once, scaled."""

    weight: jax.Array
    num_embeddings: int = eqx.field(static=True)
    embedding_size: int = eqx.field(static=True)

    def __call__(self, ids):
        return 2 * self.weight[ids]


class ScaledEmbedding(eqx.nn.Embedding):
    def __call__(self, x, *, key=None):
        return self.embedding_size**0.5 * super().__call__(x, key=key)


def test_layers_that_do_more_than_a_lookup_are_called_as_they_are(getkey):
    weight, ids = jax.random.normal(getkey(), (NUM, DIM)), jnp.array([0, 3, 3])
    duck = DuckEmbedding(weight, NUM, DIM)
    assert LoRAEmbedding.applies_to(duck)
    wrapper = with_update(LoRAEmbedding(duck, RANK, 1.0, key=getkey()), getkey())
    np.testing.assert_allclose(wrapper(ids), 2 * wrapper.merge().weight[ids], rtol=1e-6)
    scaled = ScaledEmbedding(weight=weight)
    wrapper = with_update(LoRAEmbedding(scaled, RANK, 1.0, key=getkey()), getkey())
    expected = DIM**0.5 * wrapper.merge().weight[5]
    np.testing.assert_allclose(wrapper(jnp.array(5)), expected, rtol=1e-5)


def test_claims_embeddings_only(getkey):
    key, w = getkey(), jnp.ones((NUM, DIM))
    refused = [
        DuckEmbedding(w.T, NUM, DIM),  # stored the other way round
        DuckEmbedding(w.astype(int), NUM, DIM),
        DuckEmbedding(w.astype(complex), NUM, DIM),
        DuckEmbedding(w, None, None),
        eqx.nn.Linear(4, 4, key=key),
        eqx.nn.RotaryPositionalEmbedding(4),
        eqx.nn.LayerNorm(4),
        eqx.nn.Embedding(0, 4, key=key),
        LoRAEmbedding(table(key), 2, 1.0, key=key),
        *(w, key, None, 3, "x", jnp.ones, object()),
    ]
    assert not any(EmbeddingLayer.applies_to(leaf) for leaf in refused)
    assert EmbeddingLayer.applies_to(table(key))


def test_a_plan_says_why_a_table_is_not_claimed(getkey):
    turned = eqx.tree_at(lambda m: m.weight, table(getkey()), jnp.ones((DIM, NUM)))
    (row,) = plan_lora({"table": turned}, 2, wrapper=LoRAEmbedding)
    assert row.reason == ("its weight is (6, 11), not (num_embeddings, embedding_size) = (11, 6)")
    assert LoRAEmbedding.why_not(eqx.nn.Linear(2, 2, key=getkey())) is None


def test_ids_are_measured_as_the_rows_that_they_read(getkey):
    """For methods that start from data: the covariance counts how often each row is read."""
    ids = jnp.array([0, 3, 3, -1, 99])  # from the end, and beyond it

    class Measured(CorDA, EmbeddingLayer):
        pass

    loss = lambda model, ids: jnp.sum(jax.vmap(model)(ids) ** 2)  # noqa: E731
    found = calibrate(table(getkey()), [ids], loss, wrapper=Measured)[""]["input_covariance"]
    counts = np.zeros(NUM)
    counts[[0, 3, 10]] = 1, 2, 2
    np.testing.assert_allclose(found, np.diag(counts / 5), atol=1e-6)


class Tagger(eqx.Module):
    embedding: eqx.nn.Embedding
    linear: eqx.nn.Linear

    def __init__(self, key):
        one, two = jax.random.split(key)
        self.embedding = table(one)
        self.linear = eqx.nn.Linear(DIM, 3, key=two)

    def __call__(self, ids):
        return jax.vmap(self.linear)(jax.vmap(self.embedding)(ids))


def test_by_name_by_variant_and_in_auto_but_not_by_default(getkey):
    def wrapped(**kwargs):
        module = Net(Tagger(getkey())).lora(rank=2, **kwargs).module
        return type(module.embedding).__name__, type(module.linear).__name__

    assert wrapped() == ("Embedding", "LoRALinear")
    assert wrapped(wrapper="LoRAEmbedding") == ("LoRAEmbedding", "Linear")
    assert wrapped(wrapper="auto") == ("LoRAEmbedding", "LoRALinear")
    assert wrapped(wrapper="dora") == ("Embedding", "DoRALinear")
    assert wrapped(wrapper="dora-embedding") == ("DoRAEmbedding", "Linear")
    assert wrapped(wrapper=["dora", "dora-embedding"]) == ("DoRAEmbedding", "DoRALinear")


def test_refusals_of_methods_name_the_path(getkey):
    with pytest.raises(WrapperError, match=r"embedding.*alpha must be greater than 0"):
        Net(Tagger(getkey())).lora(rank=2, alpha=0.0, wrapper=PiSSAEmbedding)
    with pytest.raises(SelectionError):
        Net(Tagger(getkey())).lora(rank=2, wrapper=LoRAEmbedding, target="linear")
    (row,) = Net(Tagger(getkey())).lora(rank=50, wrapper=LoRAEmbedding).summary()
    assert (row.path, row.rank, row.asked_rank) == ("embedding", 6, 50)


def test_to_lora_finds_lora_for_embeddings(getkey):
    wrappers = ["dora", "dora-embedding"]
    model, _ = to_lora(apply_lora(Tagger(getkey()), 2, key=getkey(), wrapper=wrappers), rank=2)
    assert type(model.embedding) is LoRAEmbedding
