"""Which layers each kind claims: all that it can adapt, nothing else, and without raising.

The kit asks every adapter about objects that are not layers, and about adapted layers.
"""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from zoo_cases import ALL_METHODS, case
from zoo_cases.layers import NAMES

import jno_lora_zoo
from jno.lora import Net, SelectionError, plan_lora
from jno_lora_zoo import (
    LAYER_KINDS,
    METHODS,
    ConvLayer,
    DoRA,
    EmbeddingLayer,
    IA3InNorm,
    InNormLayer,
    LayerKind,
    LinearLayer,
    Method,
    RecurrentLayer,
    adapters_for,
)

KEY = jax.random.key(0)
LINEAR = eqx.nn.Linear(6, 5, key=KEY)


def duck(weight, **attributes):
    """Somebody's layer, which says of itself what it is told to say."""
    body = {"__annotations__": dict.fromkeys(("weight", *attributes), Any)}
    body["__call__"] = lambda self, x: x
    return type("Duck", (eqx.Module,), body)(weight, *attributes.values())


def layer(weight, inputs=6, outputs=5):
    return duck(weight, in_features=inputs, out_features=outputs)


def kernel(weight, **attributes):
    sizes = {"in_channels": 3, "out_channels": 4, "kernel_size": (5, 2), "groups": 1}
    return duck(weight, **{**sizes, **attributes})


def table(weight, count=11, size=6):
    return duck(weight, num_embeddings=count, embedding_size=size)


class NamedArray(NamedTuple):
    """An array as Haliax has them."""

    array: Any
    axes: Any


class NotBuiltYet(eqx.Module):
    in_features: int = 6
    out_features: int = 5
    in_channels: int = 6
    out_channels: int = 5

    @property
    def weight(self):
        raise RuntimeError("call `build` first")

    def __call__(self, x):
        return x


def f32(*shape):
    return jnp.ones(shape)


class Linear(eqx.Module):
    """A linear layer as Haliax has them."""

    weight: NamedArray


OF_HALIAX = Linear(NamedArray(f32(5, 6), ("out", "in")))


def placeholder_of_shared():
    shared = eqx.nn.Shared((LINEAR, LINEAR), lambda p: p[1].weight, lambda p: p[0].weight)
    return shared.pytree[1]


def gru(**arrays):
    cell = eqx.nn.GRUCell(3, 2, key=KEY)
    for name, array in arrays.items():
        cell = eqx.tree_at(lambda c, name=name: getattr(c, name), cell, array)
    return cell


TURNED_TABLE = eqx.tree_at(lambda m: m.weight, eqx.nn.Embedding(11, 6, key=KEY), f32(6, 11))
REFUSED = {
    "array": f32(5, 6),
    "list": [LINEAR],
    "class": eqx.nn.Conv2d,
    "placeholder of Shared": placeholder_of_shared(),
    "LayerNorm": eqx.nn.LayerNorm(6),
    "weight of (in, out)": layer(f32(6, 5)),
    "weight of no axes": layer(f32()),
    "complex weight": layer(jnp.ones((5, 6), jnp.complex64)),
    "integer weight": layer(jnp.ones((5, 6), jnp.int8)),
    "weight without inputs": layer(f32(5, 0), 0, 5),
    "channel-last kernel": kernel(f32(5, 2, 3, 4)),
    "kernel of another size": kernel(f32(4, 3, 5, 3)),
    "spectral weight": kernel(jnp.ones((4, 3, 5, 2), jnp.complex64)),
    "empty kernel": kernel(f32(4, 3, 0, 2), kernel_size=(0, 2)),
    "groups that are a string": kernel(f32(4, 3, 5, 2), groups="depthwise"),
    "channels that are arrays": kernel(f32(4, 3, 5, 2), in_channels=np.array([3, 3])),
    "spectral layer without kernel sizes": duck(f32(4, 3, 5, 2), in_channels=3, out_channels=4),
    "duck-typed transposed kernel": kernel(f32(4, 3, 5, 2), output_padding=(0, 0)),
    "table of (size, count)": table(f32(6, 11)),
    "table of integers": table(jnp.ones((11, 6), int)),
    "empty table": eqx.nn.Embedding(0, 4, key=KEY),
    "cell with other weights": gru(weight_hh=f32(4, 2)),
    "norm of a cell": eqx.nn.WeightNorm(eqx.nn.GRUCell(3, 2, key=KEY), "weight_hh"),
    "norm of a bias": eqx.nn.WeightNorm(LINEAR, "bias", axis=None),
    "weight that raises": NotBuiltYet(),
}


@pytest.mark.parametrize("leaf", REFUSED.values(), ids=list(REFUSED))
def test_no_kind_claims_other_leaves_or_raises(leaf):
    assert [kind for kind in LAYER_KINDS if kind.applies_to(leaf)] == []
    for kind in LAYER_KINDS:
        kind.why_not(leaf)


@pytest.mark.parametrize("kind", NAMES)
def test_a_layer_is_of_one_kind(kind):
    for name in NAMES[kind]:
        layer = case(kind, name).layer
        of_kinds = [kind for kind in LAYER_KINDS if kind.applies_to(layer)]
        assert of_kinds == [getattr(jno_lora_zoo, f"{kind}Layer")]


@pytest.mark.parametrize(
    ("kind", "leaf", "ndim"),
    [
        (LinearLayer, eqx.nn.Linear(6, 5, dtype=jnp.bfloat16, key=KEY), 0),
        (LinearLayer, layer(np.ones((5, 6), np.float32)), 0),
        (LinearLayer, layer(f32(3, 5, 6)), 1),
        (ConvLayer, kernel(np.ones((4, 3, 5, 2), np.float32)), 0),
        (ConvLayer, kernel(f32(2, 4, 3, 5, 2)), 1),
        (ConvLayer, kernel(f32(4, 2, 5, 2), in_channels=4, groups=2), 0),
        (ConvLayer, kernel(f32(4, 3, 5), kernel_size=5), 0),
        (ConvLayer, kernel(f32(4, 3, 5, 2), kernel_size=[5, 2]), 0),
        (EmbeddingLayer, table(f32(2, 11, 6)), 1),
    ],
)
def test_other_forms_of_the_same_layers_are_claimed(kind, leaf, ndim):
    assert [kind for kind in LAYER_KINDS if kind.applies_to(leaf)] == [kind]
    assert kind.stack_ndim(leaf) == ndim


@pytest.mark.parametrize(
    ("kind", "leaf", "said"),
    [
        (ConvLayer, eqx.nn.ConvTranspose1d(3, 4, 2, key=KEY), '`wrapper="LoRAConvTranspose"`'),
        (ConvLayer, REFUSED["duck-typed transposed kernel"], "looks like a transposed convolution"),
        (ConvLayer, kernel(f32(4, 3, 5)), "groups, *kernel_size) = (4, 3, 5, 2)"),
        (LinearLayer, REFUSED["weight without inputs"], "its weight (5, 0) is empty"),
        (EmbeddingLayer, TURNED_TABLE, "(6, 11), not (num_embeddings, embedding_size) = (11, 6)"),
        (EmbeddingLayer, LINEAR, None),
        (LinearLayer, OF_HALIAX, 'its weight is a NamedArray: `pip install "jno-lora[haliax]"`'),
        (
            RecurrentLayer,
            REFUSED["cell with other weights"],
            "its weights are (6, 3) and (4, 2), which do not fit 3 inputs and 2 units",
        ),
        (InNormLayer, REFUSED["norm of a cell"], "it norms 'weight_hh' of a GRUCell"),
    ],
)
def test_a_layer_that_does_not_fit_is_explained(kind, leaf, said):
    reason = kind.why_not(leaf)
    assert reason is said or said in reason


@pytest.mark.parametrize(
    ("norm", "outputs", "applies"),
    [
        (lambda layer: eqx.nn.WeightNorm(layer), 3, False),
        (lambda layer: eqx.nn.WeightNorm(layer, axis=None), 3, True),
        (lambda layer: eqx.nn.WeightNorm(layer, axis=None), 1, False),
        (lambda layer: eqx.nn.SpectralNorm(layer, "weight", key=KEY), 2, True),
        (lambda layer: eqx.nn.SpectralNorm(layer, "weight", key=KEY), 1, False),
    ],
)
def test_ia3_is_refused_where_the_norm_takes_out_all_that_it_trains(norm, outputs, applies):
    normed = norm(eqx.nn.Linear(4, outputs, key=KEY))
    assert IA3InNorm.applies_to(normed) is applies
    assert applies or "takes the scale of each row out again" in IA3InNorm.why_not(normed)


def test_a_layer_of_haliax_needs_its_plugin_and_the_plan_says_so():
    assert "jno_lora_haliax is imported" in str(plan_lora([OF_HALIAX], rank=2))
    with pytest.raises(SelectionError, match=r"0: Linear, no wrapper applies.*jno-lora\[haliax\]"):
        Net([OF_HALIAX]).lora(rank=2)


def test_an_adapter_knows_its_method_and_its_layer_kind():
    for name in ALL_METHODS:
        cls, method = getattr(jno_lora_zoo, f"{name}Conv"), getattr(jno_lora_zoo, name)
        assert (cls.method, cls.kind) == cls.__bases__ == (method, ConvLayer)
    for method in METHODS:
        assert issubclass(method, Method)
        assert (method.method, method.kind) == (method, LayerKind)
    (adapter,) = adapters_for(EmbeddingLayer, __name__, methods=[DoRA]).values()
    assert (adapter.method, adapter.kind) == (DoRA, EmbeddingLayer)


def test_so_does_a_class_that_is_written_by_hand_and_its_subclasses():
    class ByHand(ConvLayer, DoRA):  # in either order
        pass

    class Changed(ByHand):
        pass

    class OtherKind(Changed, LinearLayer):
        pass

    assert (ByHand.method, ByHand.kind) == (DoRA, ConvLayer)
    assert (Changed.method, Changed.kind) == (DoRA, ConvLayer)
    assert (OtherKind.method, OtherKind.kind) == (Changed, LinearLayer)
