"""Files of each format, by the versions that wrote them: the adapters alone (1, twice), shared
arrays (2), the extension of a plugin (3) and sums (4).

Embeddings and recurrent cells had distributions of their own in 0.3.0.
"""

import pathlib

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jno_lora_zoo as zoo
from jno.lora import load_adapters, merge_lora, read_adapters, read_metadata
from jno.lora.extending import load_extended
from jno_lora_combine import split_adapters

FILES = pathlib.Path(__file__).with_name("files")
# The rows of both weights of the cell once DoRA is merged, as 0.3.0 merged it.
DORA = np.array(
    [
        [0.22633935511112213, 0.27160724997520447],
        [0.23281653225421906, 0.26607605814933777],
        [0.23651474714279175, 0.26279416680336],
        [0.23890474438667297, 0.26062336564064026],
        [0.24057579040527344, 0.2590816617012024],
        [0.2418096959590912, 0.25793036818504333],
    ]
)


def counted(shape):
    return jnp.arange(np.prod(shape), dtype=jnp.float32).reshape(shape) / 10


@pytest.fixture(scope="module")
def model():
    key = jax.random.key(0)
    layers = {
        "table": eqx.nn.Embedding(3, 2, key=key),
        "cell": eqx.nn.GRUCell(2, 2, key=key),
        "head": eqx.nn.Linear(2, 2, key=key),
    }
    return jax.tree.map(lambda x: counted(x.shape), layers)


def assert_adds(model, merged, update, cell):
    """The table and the head have `update` added everywhere, and the cell's weights are `cell`."""
    for name, added in update.items():
        np.testing.assert_allclose(merged[name].weight, model[name].weight + added, rtol=1e-6)
    for weight in (merged["cell"].weight_ih, merged["cell"].weight_hh):
        np.testing.assert_allclose(weight, cell, rtol=1e-5)


def test_embeddings_and_cells_load_as_adapters_of_the_zoo(model):
    # Every trained array is 0.5; the alpha is 2 and the rank 1.
    loaded = load_adapters(model, FILES / "cells-and-tables.safetensors")
    assert {name: type(layer) for name, layer in loaded.items()} == {
        "table": zoo.LoRAEmbedding,
        "cell": zoo.DoRARecurrent,
        "head": zoo.LoRALinear,
    }
    assert_adds(model, merge_lora(loaded), {"table": 0.5, "head": 0.5}, DORA)


def test_so_do_the_members_of_a_sum(model):
    # The sum of the adapters above and of LoRA with the alpha 4 on the table and the cell.
    file = FILES / "sum.safetensors"
    loaded = load_adapters(model, file)
    assert_adds(model, merge_lora(loaded), {"table": 1.5, "head": 0.5}, DORA + 1)
    one, two = split_adapters(loaded).values()
    assert {path: adapter.wrapper for path, adapter in two.adapters.items()} == {
        "table": zoo.LoRAEmbedding,
        "cell": zoo.LoRARecurrent,
    }
    assert one["cell"].wrapper is zoo.DoRARecurrent
    assert set(read_adapters(file)) == {"table", "cell", "head"}


@pytest.fixture(scope="module")
def linears():
    key = jax.random.key(0)
    plain = [eqx.nn.Linear(2, 2, use_bias=False, key=key) for _ in range(2)]
    model = {"head": eqx.nn.Linear(2, 2, key=key), "layers": plain}
    return jax.tree.map(lambda x: counted(x.shape), model)


def test_a_file_from_before_hashes(linears):
    # Both factors are 0.5, the alpha is 2 and the rank 1.
    loaded = load_adapters(linears, FILES / "linear.safetensors")
    assert type(loaded["head"]) is zoo.LoRALinear and loaded["head"].alpha == 2
    merged = merge_lora(loaded)
    np.testing.assert_allclose(merged["head"].weight, linears["head"].weight + 0.5, rtol=1e-6)


def test_adapters_that_share_arrays(linears):
    # The factors and vectors are 0.5, the alpha is 2 and the rank 1.
    loaded = load_adapters(linears, FILES / "tied.safetensors", strict="values")
    assert loaded["layers"][1].lora_A.name == "tied-A-2x2"
    for layer, plain in zip(merge_lora(loaded)["layers"], linears["layers"], strict=True):
        np.testing.assert_allclose(layer.weight, plain.weight + 0.125, rtol=1e-6)


def test_an_extension_and_metadata(linears):
    file = FILES / "conditional.safetensors"
    assert read_metadata(file) == {"nu": 0.05, "grid": [1, 2], "by": "a\nb"}
    loaded, extension = load_extended(linears, file, "jno-lora-conditional", strict="values")
    assert type(loaded["head"]) is zoo.LoRALinear
    assert extension.kind == "conditional adapters"
    assert extension.reader == "jno_lora_conditional.load_conditional"
    assert extension.content == {
        "format": 1,
        "size": 1,
        "basis": {
            "class": "Powers",
            "settings": {"source": 0.1, "unit": 0.1, "degree": 1, "log": False},
        },
        "moving": {"head": ["lora_B"]},
    }
    np.testing.assert_array_equal(
        extension.arrays["directions/head:lora_B"], jnp.full((1, 2, 1), 0.5)
    )
