"""Adapters and models in the form that a user writes them; the core's tests need no plugin."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu

from jno.lora import LoRAWrapper


class ToyLinear(LoRAWrapper):
    """A low-rank adapter, exactly in the documented form."""

    adapter_fields = ("lora_A", "lora_B")
    base: eqx.Module
    lora_A: jax.Array
    lora_B: jax.Array
    rank: int = eqx.field(static=True)
    alpha: float = eqx.field(static=True)

    @classmethod
    def applies_to(cls, leaf) -> bool:
        return isinstance(leaf, eqx.nn.Linear)

    def __init__(self, base, rank, alpha, *, key):
        self.base = base
        self.rank = min(rank, base.in_features, base.out_features)
        self.alpha = alpha
        self.lora_A = jax.random.normal(key, (self.rank, base.in_features))
        self.lora_B = jnp.zeros((base.out_features, self.rank))

    def __call__(self, x):
        return self.base(x) + self.alpha / self.rank * (self.lora_B @ (self.lora_A @ x))

    def merge(self):
        delta = self.alpha / self.rank * (self.lora_B @ self.lora_A)
        weight = self.base.weight + delta.astype(self.base.weight.dtype)
        return eqx.tree_at(lambda layer: layer.weight, self.base, weight)


class ToyScale(LoRAWrapper):
    """One gain per output, and a constant that no adapter method trains."""

    adapter_fields = ("gain",)
    base: eqx.nn.Linear
    gain: jax.Array
    constant: jax.Array
    rank: int = eqx.field(static=True)
    alpha: float = eqx.field(static=True)

    @classmethod
    def applies_to(cls, leaf) -> bool:
        return isinstance(leaf, eqx.nn.Linear)

    def __init__(self, base, rank, alpha, *, key):
        self.base, self.rank, self.alpha = base, rank, alpha
        self.gain = jnp.ones(base.out_features)
        self.constant = jax.random.normal(key, ())

    def __call__(self, x):
        return self.merge()(x)

    def merge(self):
        weight = self.gain[:, None] * self.base.weight
        return eqx.tree_at(lambda layer: layer.weight, self.base, weight)


class Difference(LoRAWrapper):
    """A full-rank difference of the weight."""

    adapter_fields = ("delta",)
    base: eqx.Module
    delta: jax.Array
    rank: int = eqx.field(static=True)
    alpha: float = eqx.field(static=True)

    def __init__(self, base, rank, alpha, *, key):
        self.base, self.rank, self.alpha = base, rank, alpha
        self.delta = jnp.zeros_like(base.weight)

    def __call__(self, x):
        return self.merge()(x)

    def merge(self):
        return eqx.tree_at(lambda layer: layer.weight, self.base, self.base.weight + self.delta)


class ToyConv(Difference):
    @classmethod
    def applies_to(cls, leaf) -> bool:
        return isinstance(leaf, eqx.nn.Conv)


class UserEmbedding(Difference):
    """An adapter that a user with an embedding would write."""

    @classmethod
    def applies_to(cls, leaf) -> bool:
        return isinstance(leaf, eqx.nn.Embedding)


class Block(eqx.Module):
    """A container of two layers, with a method and a static field of its own."""

    up: eqx.nn.Linear
    down: eqx.nn.Linear
    slope: float = eqx.field(static=True)

    def __init__(self, size, *, key):
        one, two = jax.random.split(key)
        self.up = eqx.nn.Linear(size, 2 * size, key=one)
        self.down = eqx.nn.Linear(2 * size, size, key=two)
        self.slope = 0.5

    def __call__(self, x):
        return x + self.down(jax.nn.leaky_relu(self.up(x), self.slope))

    def first_bias(self):
        return self.up.bias


class ToyBlock(LoRAWrapper):
    """An adapter that claims a container."""

    adapter_fields = ("shift",)
    base: Block
    shift: jax.Array
    rank: int = eqx.field(static=True)
    alpha: float = eqx.field(static=True)

    @classmethod
    def applies_to(cls, leaf) -> bool:
        return isinstance(leaf, Block)

    def __init__(self, base, rank, alpha, *, key):
        self.base, self.rank, self.alpha = base, rank, alpha
        self.shift = jnp.zeros(base.down.out_features)

    def __call__(self, x):
        return self.base(x) + self.shift

    def merge(self):
        return eqx.tree_at(lambda b: b.down.bias, self.base, self.base.down.bias + self.shift)


class ToyStacked(ToyLinear):
    """Maps itself over the leading axes of a linear layer built by `filter_vmap`."""

    @classmethod
    def stack_ndim(cls, leaf) -> int:
        return leaf.weight.ndim - 2

    def __init__(self, base, rank, alpha, *, key):
        assert base.weight.ndim == 2, "the constructor must see one layer"
        ToyLinear.__init__(self, base, rank, alpha, key=key)

    def merge(self):
        assert self.base.weight.ndim == 2, "merge must see one layer"
        return ToyLinear.merge(self)


class Model(eqx.Module):
    """An embedding, a list of layers, and a head; it reads its embedding's weight directly."""

    embedding: eqx.nn.Embedding
    encoder: list[eqx.nn.Linear]
    head: eqx.nn.Linear
    temperature: jax.Array
    activation: Callable

    def __init__(self, key, size=3):
        keys = jax.random.split(key, 4)
        self.embedding = eqx.nn.Embedding(5, size, key=keys[0])
        self.encoder = [eqx.nn.Linear(size, size, key=k) for k in keys[1:3]]
        self.head = eqx.nn.Linear(size, 2, key=keys[3])
        self.temperature = jnp.ones(())
        self.activation = jax.nn.tanh

    def __call__(self, token):
        x = self.embedding.weight[token]
        for layer in self.encoder:
            x = self.activation(layer(x))
        return self.head(x) / self.temperature


MODEL_LAYERS = ("embedding", "encoder/0", "encoder/1", "head")
MODEL_LINEARS = ("encoder/0", "encoder/1", "head")


def adapters_in(model: Any) -> dict[str, LoRAWrapper]:
    """The adapters of `model` by their path, found without the code under test."""
    nodes = jtu.tree_leaves_with_path(model, is_leaf=lambda n: isinstance(n, LoRAWrapper))
    return {slashed(keys): node for keys, node in nodes if isinstance(node, LoRAWrapper)}


def selected(mask: Any) -> set[str]:
    """The paths of the leaves that are `True`; every leaf must be a Python bool."""
    leaves = jtu.tree_leaves_with_path(mask)
    assert all(type(leaf) is bool for _, leaf in leaves)
    return {slashed(keys) for keys, leaf in leaves if leaf}


def array_paths(model: Any) -> set[str]:
    """The paths of the floating arrays of `model`."""
    return {
        slashed(keys)
        for keys, leaf in jtu.tree_leaves_with_path(model)
        if eqx.is_inexact_array(leaf)
    }


def slashed(keys: tuple[Any, ...]) -> str:
    """A key path, written by hand."""
    parts = []
    for key in keys:
        for attribute in ("name", "idx", "key"):
            if hasattr(key, attribute):
                parts.append(str(getattr(key, attribute)))
                break
    return "/".join(parts)


def shaken(model: Any, by: float = 0.25) -> Any:
    """`model` as if training had moved every adapter field."""

    def shake(node):
        if not isinstance(node, LoRAWrapper):
            return node
        names = type(node).adapter_fields
        moved = [jax.tree.map(lambda x: x + by, getattr(node, name)) for name in names]
        return eqx.tree_at(lambda w: [getattr(w, name) for name in names], node, moved)

    return jax.tree.map(shake, model, is_leaf=lambda n: isinstance(n, LoRAWrapper))


def same(one: Any, other: Any) -> bool:
    """Whether two trees agree in structure, dtypes and every bit."""
    return bool(eqx.tree_equal(one, other, typematch=True))
