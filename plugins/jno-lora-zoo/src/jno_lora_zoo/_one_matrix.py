"""One matrix of several: as a linear layer, and what belongs to it in states and statistics."""

from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax
from jaxtyping import Array, Float

from jno.lora import Shared
from jno.lora.extending import over_stack


def item_of(values: Mapping[str, Any], name: str) -> Any:
    """The value of one matrix. An array that several matrices share is kept by one of them."""
    value = values[name]
    if not isinstance(value, Shared) or value.value is not None or value.held is not None:
        return value
    kept = (s.value for s in values.values() if s.name == value.name and s.value is not None)
    array = next(kept, None)
    return eqx.tree_at(lambda s: s.value, value, array, is_leaf=lambda x: x is None)


def linear_layer(W: Float[Array, "*modes out in"], bias: Any = None) -> eqx.nn.Linear:
    """A linear layer with this matrix, and with axes of modes in front, as in a stack."""
    layer: Any = object.__new__(eqx.nn.Linear)
    fields = {"weight": W, "bias": bias, "use_bias": bias is not None}
    sizes = {"in_features": W.shape[-1], "out_features": W.shape[-2]}
    for name, value in {**fields, **sizes}.items():
        object.__setattr__(layer, name, value)
    return layer


def modes_of(linear: Any) -> int:
    return linear.weight.ndim - 2


def constructed(settings: Any, linear: Any, key: Any, given: Any) -> Any:
    """The adapter of one matrix. Each slice of a matrix with modes has a key of its own."""
    cls, rank, alpha, options = settings
    modes = linear.weight.shape[:-2]

    def construct(linear: Any, key: Any) -> Any:
        return cls(linear, rank, alpha, key=key, **dict(options), **given)

    keys = jax.random.split(key, modes) if modes else key
    return over_stack(construct, len(modes))(linear, keys)


def merged(adapter: Any) -> Any:
    return over_stack(lambda a: a.merge(), modes_of(adapter.base))(adapter)


def unwrapped(adapter: Any) -> Any:
    return over_stack(lambda a: a.unwrap(), modes_of(adapter.base))(adapter)


def by_matrix(state: Mapping[str, Array]) -> dict[str, dict[str, Array]]:
    """The state of each matrix, from the state of the layer: its keys are `field/matrix`."""
    states: dict[str, dict[str, Array]] = {}
    for path, array in state.items():
        field, _, name = path.partition("/")
        states.setdefault(name, {})[field] = array
    return states


def blocks_of(
    cls: Any, base: Any, matrices: Mapping[str, Any], statistics: Mapping[str, Array] | None
) -> dict[str, dict[str, Array]]:
    """By name, the statistics of each matrix: blocks of the statistics of `cls.matrix`.

    **Raises:** `ValueError` for statistics that are not built in, whose blocks are not known.
    """
    if unknown := [need for need in cls.needs if need not in _SIDES]:
        raise ValueError(f"{cls.__name__} cannot cut {unknown[0]!r} into a block for each matrix")
    blocks: dict[str, dict[str, Array]] = {}
    starts = {"out": 0, "in": 0}
    factors = cls.gradient_factors(base)
    for name, linear in matrices.items():
        sizes = dict(zip(("out", "in"), linear.weight.shape[-2:], strict=True))
        stops = {side: starts[side] + size for side, size in sizes.items()}
        places = {side: slice(starts[side], stops[side]) for side in starts}
        blocks[name] = {
            need: array[tuple(places[side] for side in _SIDES[need])]
            for need, array in (statistics or {}).items()
        }
        if "gradient" in blocks[name]:
            blocks[name]["gradient"] = factors.get(name, 1.0) * blocks[name]["gradient"]
        starts = stops
    return blocks


# The side of the matrix along each axis of a statistic.
_SIDES = {
    "input_covariance": ("in", "in"),
    "input_mean": ("in",),
    "output_covariance": ("out", "out"),
    "gradient": ("out", "in"),
}
