"""Cases of common Equinox layers, and of further layers that reveal wrong values."""

import dataclasses
import functools
from collections.abc import Callable, Collection
from typing import Any, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray, PyTree

from jno.lora import LoRAWrapper
from jno.lora.extending import safely_applies

from ._case import Law, WrapperCase, skeleton
from ._symmetries import Inputs

Make: TypeAlias = Callable[[PRNGKeyArray], eqx.Module]
MakeInputs: TypeAlias = Callable[[PRNGKeyArray], Inputs]

# The checks that compare values. With a `law` and `parameters`, they notice nearly every wrong
# value that depends on the layer. The remaining checks give the same result on any layer of a kind.
_VALUE_CHECKS = (
    "identity-at-init",
    "adapter-acts",
    "merge-equals-call",
    "law",
    "parameter-count",
)


def standard_cases(
    wrapper: type[LoRAWrapper],
    layers: Collection[str] = (),
    *,
    law: Law | None = None,
    parameters: Callable[[PyTree, int], int] | None = None,
) -> list[WrapperCase]:
    """The cases of the common Equinox layers that `wrapper` claims.

    The first case of each layer runs all checks. Further cases run only the checks that compare
    values (`WrapperCase.checks`), because many mistakes appear on some layers only: a transposed
    matrix of a square layer has the right shape, a scale `alpha / rank` of 2 may be a constant, and
    a bias, a mask or a padding mode may be forgotten. Running all checks on these layers would take
    several times as long without finding more.

    | layer | further cases |
    |---|---|
    | `Linear` | more outputs than inputs, without a bias; square, with another rank and scale |
    | `Conv1d`, `ConvTranspose1d` | dilation 2, groups, without a bias |
    | `Conv2d` | reflecting padding, without groups |
    | `Embedding` | the first and the last row, by positive and negative indices |
    | `MultiheadAttention` | a mask with dropout and its key; dropout switched off by `inference` |

    **Arguments:**

    - `layers`: keys of `standard_layers()`; without them, all are tried.
    - `law`: as in `WrapperCase`, for every case.
    - `parameters`: the documented number of trained parameters, a function of the layer and the
        rank.
    """
    cases: list[WrapperCase] = []
    for name, (base, inputs, settings) in _all_layers().items():
        kind, _, variation = name.partition("-")
        if layers and kind not in layers:
            continue
        layer = jax.tree.map(lambda leaf: leaf, _skeleton(name))
        if safely_applies(wrapper, layer):
            if variation:
                settings = {**settings, "checks": _VALUE_CHECKS}
            name = f"{wrapper.__name__}-{name}"
            case = WrapperCase(wrapper, base, inputs, law=law, name=name, **settings)
            count = None if parameters is None else parameters(layer, case.rank)
            cases.append(dataclasses.replace(case, parameters=count))
    return cases


@functools.cache
def _skeleton(name: str) -> PyTree:
    return skeleton(_all_layers()[name][0])


def _layer(cls: Callable[..., eqx.Module], *args: object, **options: object) -> Make:
    return lambda key: cls(*args, **options, key=key)


def _normal(*shape: int) -> MakeInputs:
    return lambda key: (jax.random.normal(key, shape),)


def _three_sequences(key: PRNGKeyArray) -> Inputs:
    """Queries, keys and values."""
    return tuple(jax.random.normal(drawn, (5, 8)) for drawn in jax.random.split(key, 3))


def standard_layers() -> dict[str, tuple[Make, MakeInputs]]:
    """Common Equinox layers by name: a function that makes the layer, and one for its inputs."""
    nn = eqx.nn
    return {
        "Linear": (_layer(nn.Linear, 6, 4), _normal(6)),
        "Conv1d": (_layer(nn.Conv1d, 4, 5, 3, padding=1), _normal(4, 7)),
        "Conv2d": (_layer(nn.Conv2d, 4, 6, (3, 2), stride=2, groups=2), _normal(4, 7, 6)),
        "ConvTranspose1d": (_layer(nn.ConvTranspose1d, 4, 5, 3), _normal(4, 7)),
        "Embedding": (_layer(nn.Embedding, 9, 5), lambda key: (jax.random.randint(key, (), 0, 9),)),
        "MultiheadAttention": (_layer(nn.MultiheadAttention, 2, 8), _three_sequences),
        "GRUCell": (_layer(nn.GRUCell, 4, 5), lambda key: (*_normal(4)(key), jnp.ones(5))),
        "LSTMCell": (
            _layer(nn.LSTMCell, 4, 5),
            lambda key: (*_normal(4)(key), (jnp.ones(5), jnp.ones(5))),
        ),
        "LayerNorm": (lambda key: nn.LayerNorm(6), _normal(6)),
    }


def _all_layers() -> dict[str, tuple[Make, MakeInputs, dict[str, Any]]]:
    """Layer, inputs and arguments of a case, by name: `Linear`, `Linear-widening` and so on."""
    nn = eqx.nn
    settings = {"dilation": 2, "groups": 2, "use_bias": False}
    dilated = _layer(nn.Conv1d, 4, 6, 3, padding=((3, 1),), **settings)
    reflecting = _layer(nn.Conv2d, 3, 4, (2, 3), padding=1, padding_mode="REFLECT")
    transposed = _layer(nn.ConvTranspose1d, 4, 6, 3, stride=2, padding=2, **settings)
    attention = _layer(nn.MultiheadAttention, 2, 8, dropout_p=0.5)
    ends = tuple(map(jnp.asarray, (0, 8, -1, -9)))
    further: dict[str, tuple[Make, MakeInputs, dict[str, Any]]] = {
        "Linear-widening": (_layer(nn.Linear, 3, 5, use_bias=False), _normal(3), {}),
        "Linear-square": (_layer(nn.Linear, 4, 4), _normal(4), {"rank": 3, "alpha": 3.0}),
        "Conv1d-dilated": (dilated, _normal(4, 7), {}),
        "Conv2d-reflecting": (reflecting, _normal(3, 4, 5), {}),
        "ConvTranspose1d-dilated": (transposed, _normal(4, 7), {}),
        "Embedding-ends": (_layer(nn.Embedding, 9, 5), lambda key: ends, {"call": _each}),
        "MultiheadAttention-masked": (attention, _masked_sequences, {"call": _masked}),
        "MultiheadAttention-inference": (attention, _three_sequences, {"call": _in_inference}),
    }
    every = {kind: (*layer, {}) for kind, layer in standard_layers().items()} | further
    kinds = [*standard_layers()]
    return {
        name: every[name] for name in sorted(every, key=lambda x: kinds.index(x.partition("-")[0]))
    }


def _each(layer: PyTree, *indices: PyTree) -> list[PyTree]:
    return [layer(index) for index in indices]


def _masked_sequences(key: PRNGKeyArray) -> Inputs:
    return (*_three_sequences(key), jnp.tri(5, dtype=bool), key)


def _masked(
    layer: PyTree, query: PyTree, keys: Array, values: Array, mask: Array, key: PRNGKeyArray
) -> PyTree:
    return layer(query, keys, values, mask, key=key)


def _in_inference(layer: PyTree, query: PyTree, keys: Array, values: Array) -> PyTree:
    return layer(query, keys, values, inference=True)
