"""Small language models whose output head has the table of their embedding, in all forms."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from jno.lora import apply_lora, lora_trainable_filter

ROWS, SIZE = 7, 4
IDS = jnp.array([3, 0, 6, 3])


class Reading(eqx.Module):
    """Reads `embed_tokens.weight` for its head, and by `calls` or by indexing for its lookups."""

    embed_tokens: eqx.nn.Embedding
    proj: eqx.nn.Linear
    calls: bool = eqx.field(static=True, default=False)

    def __call__(self, ids):
        table = self.embed_tokens.weight
        x = jax.vmap(self.embed_tokens)(ids) if self.calls else table[ids]
        return jax.vmap(self.proj)(x) @ table.T


class Sharing(eqx.Module):
    """Ties its head by `eqx.nn.Shared`; `owner` says which side keeps the weight."""

    shared: eqx.nn.Shared
    proj: eqx.nn.Linear

    def __call__(self, ids):
        layers = self.shared()
        x = jax.vmap(self.proj)(jax.vmap(layers["embed_tokens"])(ids))
        return jax.vmap(layers["lm_head"])(x)


class Holding(eqx.Module):
    """Has a head of its own, which may hold the very array of the embedding."""

    embed_tokens: eqx.nn.Embedding
    proj: eqx.nn.Linear
    lm_head: eqx.nn.Linear

    def __call__(self, ids):
        x = jax.vmap(self.proj)(jax.vmap(self.embed_tokens)(ids))
        return jax.vmap(self.lm_head)(x)


def parts():
    keys = jax.random.split(jax.random.key(0), 3)
    embedding = eqx.nn.Embedding(ROWS, SIZE, key=keys[0])
    head = eqx.nn.Linear(SIZE, ROWS, use_bias=False, key=keys[1])
    head = eqx.tree_at(lambda m: m.weight, head, embedding.weight)
    return embedding, eqx.nn.Linear(SIZE, SIZE, use_bias=False, key=keys[2]), head


def sharing(owner="embed_tokens"):
    embedding, proj, head = parts()
    other = {"embed_tokens": "lm_head", "lm_head": "embed_tokens"}[owner]
    pair = {"embed_tokens": embedding, "lm_head": head}
    shared = eqx.nn.Shared(pair, lambda p: p[other].weight, lambda p: p[owner].weight)
    return Sharing(shared, proj)


def reading(calls=False):
    embedding, proj, _ = parts()
    return Reading(embedding, proj, calls)


def holding(is_copy=False):
    embedding, proj, head = parts()
    if is_copy:
        head = eqx.tree_at(lambda m: m.weight, head, jnp.array(embedding.weight))
    return Holding(embedding, proj, head)


# By name: the model, and `rename` from PEFT's names.
TIED = {
    "indexes": (reading, None),
    "calls": (lambda: reading(calls=True), None),
    "shared": (sharing, {"^embed_tokens": "shared/pytree/embed_tokens"}),
    "twice": (holding, None),
    "own head": (lambda: holding(is_copy=True), None),
}


def logits(lookups, head, proj=None):
    """The outputs of all these models, from the table of the lookups and that of the head."""
    proj = np.asarray(parts()[1].weight) if proj is None else proj
    return lookups[np.asarray(IDS)] @ proj.T @ head.T


def close(got, expected):
    return np.allclose(np.asarray(got), expected, rtol=1e-5, atol=1e-5)


def moved(model):
    """With other numbers in its adapters."""
    trains, rest = eqx.partition(model, lora_trainable_filter(model))
    return eqx.combine(jax.tree.map(lambda a: a + 0.3, trains), rest)


def adapted(model, wrapper="LoRAEmbedding"):
    options = {"target": "embed_tokens", "wrappers": wrapper, "key": jax.random.key(1)}
    return moved(apply_lora(model, 2, 3.0, **options))
