"""A model of one layer of each kind, which Torch has too, under the names it has there."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from jno.lora import resolve
from jno.lora.extending import adapted_layers
from jno_lora_routed import Lily, average_over


def twin(weights):
    """The model with the weights of Torch's, by Torch's names for them."""

    def filled(layer, name):
        bias = weights.get(f"{name}.bias")
        layer = eqx.tree_at(lambda m: m.weight, layer, jnp.asarray(weights[f"{name}.weight"]))
        if bias is None:
            return layer
        return eqx.tree_at(lambda m: m.bias, layer, jnp.asarray(bias).reshape(layer.bias.shape))

    key = jax.random.key(0)
    linear, conv1d, conv2d = eqx.nn.Linear, eqx.nn.Conv1d, eqx.nn.Conv2d
    return {
        "block": {
            "fc": filled(linear(5, 4, key=key), "block.fc"),
            "out": filled(linear(4, 3, use_bias=False, key=key), "block.out"),
        },
        "fc": filled(linear(4, 4, key=key), "fc"),
        "layers": [{"fc": filled(linear(4, 4, key=key), f"layers.{i}.fc")} for i in range(2)],
        "conv1": filled(conv1d(3, 4, 3, padding=1, key=key), "conv1"),
        "conv2": filled(conv2d(2, 4, (3, 2), stride=2, key=key), "conv2"),
        "grouped": filled(conv2d(4, 4, 3, padding=1, groups=2, key=key), "grouped"),
        "embed": filled(eqx.nn.Embedding(7, 4, key=key), "embed"),
        "norm": filled(eqx.nn.LayerNorm(4), "norm"),
        "head": filled(linear(4, 2, key=key), "head"),
        "wide": filled(linear(8, 6, key=key), "wide"),
        "deep": filled(linear(6, 8, use_bias=False, key=key), "deep"),
    }


def inputs():
    random = np.random.default_rng(0)
    shapes = {
        "block.fc": (5,),
        "block.out": (4,),
        "fc": (4,),
        "layers.0.fc": (4,),
        "layers.1.fc": (4,),
        "conv1": (3, 5),
        "conv2": (2, 5, 4),
        "grouped": (4, 3, 3),
        "norm": (4,),
        "head": (4,),
        "wide": (8,),
        "deep": (6,),
    }
    batches = {n: random.standard_normal((3, *s), np.float32) for n, s in shapes.items()}
    return batches | {"embed": np.array([0, 6, 3])}


def layer_at(model, name):
    for part in name.split("."):
        model = model[int(part) if part.isdigit() else part]
    return model


def outputs(model):
    """The outputs of each layer for its batch, over which Lily averages, as in PEFT."""
    model = resolve(model)
    if any(isinstance(layer, Lily) for _, layer in adapted_layers(model)):
        model = average_over(model, "batch")
    batches = inputs().items()
    return {name: jax.vmap(layer_at(model, name), axis_name="batch")(x) for name, x in batches}


def assert_close(ours, theirs, tolerance=1e-5):
    assert ours.keys() == theirs.keys()
    for name, expected in theirs.items():
        error = np.max(np.abs(np.asarray(ours[name]) - expected))
        assert error <= tolerance * np.max(np.abs(expected)), (name, error)
