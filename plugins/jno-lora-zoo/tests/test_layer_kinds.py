"""The table of layer kinds, and what an adapter class says of its method and its layer kind."""

import equinox as eqx
import jax
import pytest
from zoo_cases import ADAPTERS

from jno_lora_zoo import (
    LAYER_KINDS,
    METHODS,
    ConvLayer,
    ConvTransposeLayer,
    DoRA,
    EmbeddingLayer,
    InNormLayer,
    LayerKind,
    LinearLayer,
    Method,
    RecurrentLayer,
    adapters_for,
)

KEY = jax.random.key(0)
LAYERS = [
    (LinearLayer, "oi", eqx.nn.Linear(3, 2, key=KEY)),
    (ConvLayer, "oi...", eqx.nn.Conv2d(3, 2, 3, key=KEY)),
    (ConvTransposeLayer, "oi...", eqx.nn.ConvTranspose1d(3, 2, 3, key=KEY)),
    (EmbeddingLayer, "io", eqx.nn.Embedding(3, 2, key=KEY)),
    (RecurrentLayer, None, eqx.nn.GRUCell(3, 2, key=KEY)),
    (InNormLayer, None, eqx.nn.WeightNorm(eqx.nn.Linear(3, 2, key=KEY))),
]


@pytest.mark.parametrize(("kind", "axes", "layer"), LAYERS)
def test_a_layer_is_of_one_kind_which_says_how_its_weight_is_stored(kind, axes, layer):
    assert [kind for kind in LAYER_KINDS if kind.applies_to(layer)] == [kind]
    assert kind.weight_axes == axes
    if axes is not None:
        outputs, inputs = axes.index("o"), axes.index("i")
        matrix = kind.matrix(layer)
        assert layer.weight.shape[outputs] == matrix.shape[0]
        assert matrix.shape[1] % layer.weight.shape[inputs] == 0


def test_the_table_lists_every_kind():
    assert [kind for kind, _, _ in LAYERS] == list(LAYER_KINDS)
    assert not any(kind.applies_to(eqx.nn.LayerNorm(3)) for kind in LAYER_KINDS)


def test_an_adapter_knows_its_method_and_its_layer_kind():
    for adapter in ADAPTERS:
        assert (adapter.cls.method, adapter.cls.kind) == adapter.cls.__bases__
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


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.__name__)
def test_a_method_alone_has_no_kind_of_its_own(method):
    assert issubclass(method, Method)
    assert (method.method, method.kind) == (method, LayerKind)
