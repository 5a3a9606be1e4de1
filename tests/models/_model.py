"""The facts of the matrix about a model that somebody else wrote."""

import dataclasses
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
from jaxtyping import Array, PRNGKeyArray


def _call(model: Any, *inputs: Any) -> Any:
    return model(*inputs)


@dataclasses.dataclass(frozen=True)
class Model:
    """A model, small enough to be compiled in seconds, with inputs.

    **Arguments:**

    - `name`: its name in test ids, the package first.
    - `build`: makes the model from a key.
    - `inputs`: makes the tuple of its inputs from a key.
    - `call`: how it is called with them. Stochastic models are called in inference mode here.
    - `layers`: how many layers the default wraps. It is pinned, so that a layer which stops being
        adapted is noticed. With 0 the default must say that it finds nothing.
    - `adaptable`: whether any variant can reach a layer; if not, each must refuse.
    - `note`: one line for the report.
    """

    name: str
    build: Callable[[PRNGKeyArray], Any]
    inputs: Callable[[PRNGKeyArray], tuple[Any, ...]]
    call: Callable[..., Any] = _call
    layers: int = 0
    adaptable: bool = True
    note: str = ""

    def __str__(self) -> str:
        return self.name

    def outputs(self, model: Any, inputs: tuple[Any, ...]) -> list[Array]:
        """Every floating array in what the model returns."""
        returned = self.call(model, *inputs)
        return [leaf for leaf in jax.tree.leaves(returned) if eqx.is_inexact_array(leaf)]


def normal(*shapes: tuple[int, ...]) -> Callable[[PRNGKeyArray], tuple[Array, ...]]:
    """Inputs of these shapes, normally distributed."""

    def make(key: PRNGKeyArray) -> tuple[Array, ...]:
        keys = jax.random.split(key, len(shapes))
        return tuple(jax.random.normal(k, shape) for k, shape in zip(keys, shapes, strict=True))

    return make


def tokens(length: int, count: int) -> Callable[[PRNGKeyArray], tuple[Array, ...]]:
    """One sequence of token ids below `count`."""
    return lambda key: (jax.random.randint(key, (length,), 0, count),)
