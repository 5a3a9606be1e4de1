"""Parts of random models: containers, layers of somebody's own, and adapters of those."""

import dataclasses
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from tests.core.toys import Difference, UserEmbedding


class Node(eqx.Module):
    """A container with an array of its own, which an adapter may claim as a whole."""

    left: Any
    right: Any
    scale: jax.Array
    name: str = eqx.field(static=True)


class Pair(NamedTuple):
    """A tuple whose places have names."""

    left: Any
    right: Any


@jtu.register_dataclass
@dataclasses.dataclass
class Record:
    """A class that is not a module, and is registered with JAX with the names of its fields."""

    first: Any
    second: Any


@jtu.register_pytree_node_class
class Pile:
    """A class that JAX knows to hold nodes, but not by which names: they are numbered."""

    def __init__(self, items: Any):
        self.items = tuple(items)

    def tree_flatten(self) -> Any:
        return self.items, None

    @classmethod
    def tree_unflatten(cls, aux: None, items: Any) -> "Pile":
        del aux
        return cls(items)


class DuckLinear(eqx.Module):
    """Somebody's own linear layer."""

    weight: jax.Array
    in_features: int = eqx.field(static=True)
    out_features: int = eqx.field(static=True)

    def __call__(self, x):
        return self.weight @ x


class DuckConv(eqx.Module):
    """Somebody's own convolution."""

    weight: jax.Array
    in_channels: int = eqx.field(static=True)
    out_channels: int = eqx.field(static=True)
    kernel_size: tuple[int, ...] = eqx.field(static=True)

    def __call__(self, x):
        return jax.lax.conv_general_dilated(x[None], self.weight, (1,), "VALID")[0]


class NodeAdapter(Difference):
    """An adapter of a container, which hides the layers inside from nobody who comes first."""

    variant = "test-shift"
    auto = True

    @classmethod
    def applies_to(cls, leaf) -> bool:
        return type(leaf) is Node

    def __init__(self, base, rank, alpha, *, key):
        self.base, self.rank, self.alpha = base, rank, alpha
        self.delta = jnp.zeros_like(base.scale)

    def merge(self):
        return eqx.tree_at(lambda node: node.scale, self.base, self.base.scale + self.delta)


class EmbeddingAdapter(UserEmbedding):
    """A plugin's adapter of a variant that has one for the same layers already."""

    variant = "lora"


class NormAdapter(Difference):
    """A plugin's adapter that takes part in "auto", for layers that have no other."""

    variant = "test-shift"
    auto = True

    @classmethod
    def applies_to(cls, leaf) -> bool:
        return type(leaf) is eqx.nn.LayerNorm
