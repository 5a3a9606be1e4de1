"""The ways to serve all values of a parameter: what trains, and the network at a value."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from jno.lora import Net
from jno_lora_conditional import Conditional, at, merge

from ._equations import Equation

WIDTH, DEPTH = 20, 2


@dataclass(frozen=True)
class Way:
    """A way, as `start(base, equation, key) -> (trainable, frozen)` and `network(tree, ...)`.

    - `network(tree, equation, z)`: the network at `z`, a function of a point, from both trees
        combined.
    - `each`: whether each value has trained arrays of its own.
    - `from_base`: whether it starts from the base; else from random values, with the steps that
        the base was trained for in addition.
    - `keeps_source`: whether the solution at the source must stay the base's.
    - `draws`: whether each point has a random value of the range, in the place of five values.
    - `has_input`: whether `z` is an input of the network. Adam then also tries a larger rate for
        the weights of this input.
    """

    name: str
    start: Callable[[Any, Equation, Any], tuple[Any, Any]]
    network: Callable[[Any, Equation, Any], Callable[[Any], Any]]
    each: bool = False
    from_base: bool = True
    keeps_source: bool = False
    draws: bool = False
    has_input: bool = False


def new_network(inputs: int, key: Any) -> eqx.nn.MLP:
    """A network of random values, with one output."""
    return eqx.nn.MLP(inputs, "scalar", WIDTH, DEPTH, jnp.tanh, key=key)


def _conditional(base: Any, equation: Equation, key: Any) -> Any:
    net = Net(base, key=key).freeze().lora(2, 4.0)
    return Conditional(net, equation.powers(2)).partition()


def _lora(base: Any, equation: Equation, key: Any) -> Any:
    return Net(base, key=key).freeze().lora(2, 4.0).partition()


def _full(base: Any, equation: Equation, key: Any) -> Any:
    return eqx.partition(base, eqx.is_inexact_array)


def _with_input(base: Any, equation: Equation, key: Any) -> Any:
    """The base with an input more, whose weights start as zero."""
    weight = base.layers[0].weight
    wider = jnp.concatenate([weight, jnp.zeros_like(weight[:, :1])], axis=1)
    return _full(eqx.tree_at(lambda m: m.layers[0].weight, base, wider), equation, key)


def _scratch(base: Any, equation: Equation, key: Any) -> Any:
    return _full(new_network(equation.inputs + 1, key), equation, key)


def _at_value(tree: Any, equation: Equation, z: Any) -> Any:
    return at(tree, z)


def _as_it_is(tree: Any, equation: Equation, z: Any) -> Any:
    return tree


def _of_input(tree: Any, equation: Equation, z: Any) -> Any:
    u = equation.powers(1)(z)
    return lambda x: tree(jnp.concatenate([x, u]))


_FAMILIES = (
    Way("conditional lora 2", _conditional, _at_value, keeps_source=True),
    Way("full, an input more", _with_input, _of_input, has_input=True),
    Way("parametric PINN", _scratch, _of_input, from_base=False, has_input=True),
)
WAYS = (
    *_FAMILIES,
    Way("lora 2 for each value", _lora, _as_it_is, each=True),
    Way("full for each value", _full, _as_it_is, each=True),
    *(replace(way, name=f"{way.name}, z drawn", draws=True) for way in _FAMILIES),
)
BASE = Way("base", _full, _as_it_is, each=True, from_base=False)


def residual_of(way: Way, equation: Equation) -> Callable[[Any, Any, Any], Any]:
    """`residual(trainable, frozen, point)`, a number, for a point `(z, *x)`."""

    def residual(trainable: Any, frozen: Any, point: Any) -> Any:
        z, x = point[0], point[1:]
        network = way.network(eqx.combine(trainable, frozen), equation, z)
        return equation.residual(lambda x: equation.solution(network, x), z, x)

    return residual


def solutions(way: Way, equation: Equation, tree: Any, z: Any, x: Any) -> Any:
    """The solution at `z` at points `(n, d)`."""
    network = way.network(tree, equation, z)
    return jax.vmap(lambda x: equation.solution(network, x))(x)


def is_source_unchanged(way: Way, equation: Equation, tree: Any, base: Any) -> bool:
    """Whether the merged network at the source is the base, bit for bit."""
    if not way.keeps_source:
        return False
    networks = merge(tree, equation.source), base
    arrays = [jax.tree.leaves(eqx.filter(network, eqx.is_array)) for network in networks]
    return all(bool(jnp.array_equal(x, y)) for x, y in zip(*arrays, strict=True))
