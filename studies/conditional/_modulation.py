"""Models that get the parameter as a model without adapters does: by FiLM, by an input channel."""

import re
from collections.abc import Callable, Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from .._families import Family

Features = Callable[[Any], Float[Array, " K"]]
# Arrays by their paths: a scale acts on the axis of the output's channels; the arrays of one place
# (the regex's group) share it. A shift acts on the array after the scale, where there is a shift.
_FILM = {
    "fno1d": (
        (r"\.(lift|proj1)\.weight", 0, False),
        (r"\.(lift|proj1)\.bias", 0, True),
        (r"layers_conv(\[\d\])\.weight_", 1, False),
        (r"layers_w(\[\d\])\.weight", 0, False),
        (r"layers_w(\[\d\])\.bias", 0, True),
    ),
    "unet1d": ((r"(.*)\.conv\.weight", 2, False), (r"(.*)\.conv\.bias", 0, True)),
    "poseidon": (
        (r"(patch_embeddings\.projection)\.conv\.weight", 0, False),
        (r"(patch_embeddings\.projection)\.conv\.bias", 0, True),
        (r"(.*norm\w*)\.(?:weight|bias)_dense\.weight", 0, False),
        (r"(.*norm\w*)\.weight_dense\.bias", 0, False),
        (r"(.*norm\w*)\.bias_dense\.bias", 0, True),
    ),
}
# The models of `studies.large`.
_FILM["fno2d-64"] = (
    (r"\.(P|Q_layers\[0\])\.weight", 0, False),
    (r"\.(P|Q_layers\[0\])\.bias", 0, True),
    (r"conv_layers(\[\d\])\.weight_", 1, False),
    (r"w_layers(\[\d\])\.weight", 0, False),
    (r"w_layers(\[\d\])\.bias", 0, True),
)
_FILM["poseidon-64"] = _FILM["poseidon"]
_FIRST_BIAS = {
    "fno1d": r"\.lift\.bias",
    "unet1d": r"encoders\[0\]\.conv_block\.conv1\.conv\.bias",
    "poseidon": r"patch_embeddings\.projection\.conv\.bias",
}


class Film(eqx.Module):
    """Scales and shifts of channels: `(1 + gamma(z)) h + beta(z)`, linear in features of `z`.

    They start as zero. The places are outputs of layers (an FNO: of the lifting, of each block,
    and of the first projection; `unet1d`: of each convolution; `poseidon`: of the patch embedding,
    and of each norm, where the model has a modulation by time already).

    Paper: Perez et al., "FiLM: Visual Reasoning with a General Conditioning Layer",
    arXiv:1709.07871.
    """

    features: Any
    codes: dict[str, Float[Array, "2 K channels"]]
    family: str = eqx.field(static=True)

    def __init__(self, family: Family, model: Any, features: Any, size: int):
        self.features, self.family = features, family.name
        self.codes = {
            place: jnp.zeros((2, size, leaf.shape[axis]))
            for _, leaf, place, axis, _ in _places(family.name, model)
        }

    def __call__(self, model: Any, z: Any) -> Any:
        """The model at `z`."""
        phi = self.features(z)
        modulation = {name: jnp.einsum("k,jkc->jc", phi, c) for name, c in self.codes.items()}

        def modulated(leaf: Array, place: str, axis: int, is_shifted: bool) -> Array:
            shape = [-1 if axis == position else 1 for position in range(leaf.ndim)]
            scale, shift = (values.reshape(shape) for values in modulation[place])
            return (1 + scale) * leaf + (shift if is_shifted else 0)

        changes = {
            path: modulated(leaf, place, axis, is_shifted)
            for path, leaf, place, axis, is_shifted in _places(self.family, model)
        }
        return _with_leaves(model, changes)


class Channel(eqx.Module):
    """An input channel that is constant and equal to `u(z)`.

    In these models a constant channel acts as a bias of the first layer, `weight u(z)`. The weight
    starts as zero.
    """

    features: Any
    weight: Array
    family: str = eqx.field(static=True)

    def __init__(self, family: Family, model: Any, features: Any):
        self.features, self.family = features, family.name
        ((_, bias),) = _leaves(model, _FIRST_BIAS[family.name])
        self.weight = jnp.zeros_like(bias)

    def __call__(self, model: Any, z: Any) -> Any:
        """The model at `z`."""
        ((path, bias),) = _leaves(model, _FIRST_BIAS[self.family])
        return _with_leaves(model, {path: bias + self.weight * self.features(z)[0]})


class Hidden(eqx.Module):
    """Features of FiLM's usual kind: 1, and the hidden layer of a network of `u(z)`."""

    u: Any
    layer: eqx.nn.Linear

    def __init__(self, u: Features, size: int, *, key: PRNGKeyArray):
        self.u = u
        self.layer = eqx.nn.Linear(1, size - 1, key=key)

    def __call__(self, z: Any) -> Float[Array, " K"]:
        return jnp.concatenate([jnp.ones(1), jnp.tanh(self.layer(self.u(z)))])


class Affine(eqx.Module):
    """The features 1 and `u(z)`."""

    u: Any

    def __call__(self, z: Any) -> Float[Array, " 2"]:
        return jnp.concatenate([jnp.ones(1), self.u(z)])


def _leaves(model: Any, regex: str) -> list[tuple[str, Array]]:
    leaves = jax.tree_util.tree_leaves_with_path(eqx.filter(model, eqx.is_array))
    named = [(jax.tree_util.keystr(path), leaf) for path, leaf in leaves]
    return [(path, leaf) for path, leaf in named if re.search(regex, path)]


def _places(family: str, model: Any) -> Iterator[tuple[str, Array, str, int, bool]]:
    for regex, axis, is_shifted in _FILM[family]:
        for path, leaf in _leaves(model, regex):
            match = re.search(regex, path)
            assert match is not None
            yield path, leaf, match[1], axis, is_shifted


def _with_leaves(model: Any, changes: dict[str, Array]) -> Any:
    def changed(path: Any, leaf: Any) -> Any:
        return changes.get(jax.tree_util.keystr(path), leaf)

    return jax.tree_util.tree_map_with_path(changed, model)
