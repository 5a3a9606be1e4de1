"""Parts of random models: containers, layers of somebody's own, and adapters of those."""

import dataclasses
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu

from jno.lora import LoRAWrapper


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


class Adds(LoRAWrapper):
    """Adds to one array of the layers of one class."""

    adapter_fields = ("delta",)
    layers: ClassVar[tuple[type, ...]]
    array: ClassVar[str] = "weight"
    base: eqx.Module
    delta: jax.Array
    rank: int = eqx.field(static=True)
    alpha: float = eqx.field(static=True)

    @classmethod
    def applies_to(cls, leaf) -> bool:
        return type(leaf) in cls.layers

    def __init__(self, base, rank, alpha, *, key):
        self.base, self.rank, self.alpha = base, rank, alpha
        self.delta = jnp.zeros_like(getattr(base, self.array))

    def __call__(self, x):
        return self.merge()(x)

    def merge(self):
        new = getattr(self.base, self.array) + self.delta
        return eqx.tree_at(lambda m: getattr(m, self.array), self.base, new)


class NodeAdapter(Adds):
    """An adapter of a container, which hides the layers inside from nobody who comes first."""

    variant = "test-shift"
    layers = (Node,)
    array = "scale"


class EmbeddingAdapter(Adds):
    """A plugin's adapter of a variant that has one for the same layers already."""

    variant = "lora"
    layers = (eqx.nn.Embedding,)


class NormAdapter(Adds):
    """A plugin's adapter that takes part in "auto", for layers that have no other."""

    variant = "test-shift"
    auto = True
    layers = (eqx.nn.LayerNorm,)
