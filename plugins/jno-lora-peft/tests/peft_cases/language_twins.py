"""A small language model in Torch and in Equinox, with the same weights and names."""

import equinox as eqx
import jax
import jax.numpy as jnp

from .torch_side import nn, torch

WIDTH, WORDS, DEPTH = 16, 32, 3
TARGETS = ["query", "value", "output"]


class TorchBlock(nn.Module):
    def __init__(self):
        super().__init__()
        for name in ("query", "key", "value", "output"):
            setattr(self, name, nn.Linear(WIDTH, WIDTH, bias=False))
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, x):
        h = self.norm(x)
        scores = self.query(h) @ self.key(h).transpose(-1, -2) / WIDTH**0.5
        return x + self.output(torch.softmax(scores, -1) @ self.value(h))


class TorchModel(nn.Module):
    prepare_inputs_for_generation = None

    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.embed = nn.Embedding(WORDS, WIDTH)
        self.layers = nn.ModuleList(TorchBlock() for _ in range(DEPTH))
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, WORDS, bias=False)

    def forward(self, tokens):
        x = self.embed(tokens)
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x))


class Block(eqx.Module):
    query: eqx.nn.Linear
    key: eqx.nn.Linear
    value: eqx.nn.Linear
    output: eqx.nn.Linear
    norm: eqx.nn.LayerNorm

    def __call__(self, x):
        h = jax.vmap(self.norm)(x)
        q, k, v = (jax.vmap(part)(h) for part in (self.query, self.key, self.value))
        return x + jax.vmap(self.output)(jax.nn.softmax(q @ k.T / WIDTH**0.5) @ v)


class Model(eqx.Module):
    embed: eqx.nn.Embedding
    layers: list[Block]
    norm: eqx.nn.LayerNorm
    head: eqx.nn.Linear

    def __call__(self, tokens):
        x = jax.vmap(self.embed)(tokens)
        for layer in self.layers:
            x = layer(x)
        return jax.vmap(lambda row: self.head(self.norm(row)))(x)


def twin_of(theirs):
    """The model of Equinox with Torch's weights."""

    def linear(module):
        out, into = module.weight.shape
        layer = eqx.nn.Linear(into, out, use_bias=False, key=jax.random.key(0))
        return eqx.tree_at(lambda m: m.weight, layer, jnp.asarray(module.weight.detach().numpy()))

    def block(module):
        parts = [linear(getattr(module, n)) for n in ("query", "key", "value", "output")]
        return Block(*parts, eqx.nn.LayerNorm(WIDTH))

    table = jnp.asarray(theirs.embed.weight.detach().numpy())
    return Model(
        eqx.nn.Embedding(weight=table),
        [block(module) for module in theirs.layers],
        eqx.nn.LayerNorm(WIDTH),
        linear(theirs.head),
    )
