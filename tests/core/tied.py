"""A third party's adapter whose arrays all layers share, and models with it."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import jno.lora
from jno.lora import MatrixAdapter, Shared, resolve


def normal(key: Any, shape: Any) -> Any:
    return jax.random.normal(key, shape)


class Tied(MatrixAdapter):
    """`W + diag(b) B A`, with one `A` and one `B` for all layers, cut to each layer's size."""

    adapter_fields = ("A", "b")
    variant = "tied"

    base: Any
    A: Shared  # trained
    B: Shared  # frozen
    b: Any
    rank: int = eqx.field(static=True)
    alpha: float = eqx.field(static=True)

    @classmethod
    def applies_to(cls, leaf: Any) -> bool:
        return isinstance(leaf, eqx.nn.Linear)

    @classmethod
    def stack_ndim(cls, leaf: Any) -> int:
        return leaf.weight.ndim - 2

    @classmethod
    def matrix(cls, layer: Any) -> Any:
        return layer.weight

    def __init__(self, base: Any, rank: int, alpha: float, *, key: Any):
        outputs, inputs = base.weight.shape
        self.base, self.rank, self.alpha = base, rank, alpha
        self.A = Shared("tied-A", (rank, inputs), normal)
        self.B = Shared("tied-B", (outputs, rank), normal)
        self.b = jnp.zeros(outputs)

    def update(self) -> Any:
        outputs, inputs = self.base.weight.shape
        return self.b[:, None] * (self.B.array[:outputs] @ self.A.array[:, :inputs])

    def __call__(self, x: Any) -> Any:
        return self.base(x) + self.update() @ x

    def merge(self) -> Any:
        new = self.base.weight + self.update()
        return eqx.tree_at(lambda m: m.weight, self.base, new)


class Frozen(Tied):
    """`Tied` that trains `b` alone."""

    adapter_fields = ("b",)
    variant = "frozen"


def mlp() -> Any:
    return eqx.nn.MLP(3, 2, 5, 2, key=jax.random.key(0))


def with_stack(number: int) -> Any:
    """A stack of layers, and one layer."""
    make = lambda key: eqx.nn.Linear(3, 3, key=key)  # noqa: E731
    stack = eqx.filter_vmap(make)(jax.random.split(jax.random.key(0), number))
    return [stack, eqx.nn.Linear(3, 3, key=jax.random.key(5))]


X = np.asarray(jax.random.normal(jax.random.key(1), (4, 3)))


def adapted(model: Any = None, wrapper: Any = Tied, seed: int = 2) -> Any:
    """A model whose adapters do something."""
    net = jno.lora.apply_lora(model or mlp(), 2, key=jax.random.key(seed), wrapper=wrapper)
    return moved(net)


def apply(wrapper: Any = Tied, target: str | None = None, **options: Any) -> Any:
    key = jax.random.key(2)
    return jno.lora.apply_lora(mlp(), 2, key=key, wrapper=wrapper, target=target, **options)


def moved(model: Any) -> Any:
    trainable, frozen = eqx.partition(model, jno.lora.lora_trainable_filter(model))
    return eqx.combine(jax.tree.map(lambda x: x + 0.1, trainable), frozen)


def run(model: Any) -> Any:
    return jax.vmap(resolve(model))(X)


def leaves_named(model: Any, end: str) -> list[str]:
    paths = [jax.tree_util.keystr(keys) for keys, _ in jax.tree_util.tree_leaves_with_path(model)]
    return [path for path in paths if path.endswith(end)]
