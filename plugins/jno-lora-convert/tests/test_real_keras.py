"""LoRA of Keras and KerasHub, from what these libraries make: `make test-stacks`."""

import importlib.util
import os

import numpy as np
import pytest
import safetensors.numpy

from jno_lora_convert import convert_lora

if importlib.util.find_spec("keras_hub") is None:
    message = "needs Keras and KerasHub, which `make test-stacks` installs"
    if os.environ.get("JNO_LORA_TEST_STACKS"):
        raise ImportError(message)
    pytest.skip(message, allow_module_level=True)

os.environ.setdefault("KERAS_BACKEND", "jax")

import keras
from keras_hub.models import GemmaBackbone

pytestmark = [pytest.mark.filterwarnings("ignore")]


@pytest.fixture(autouse=True)
def lenient():
    import jax

    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        yield


def drawn(variable, seed):
    values = np.random.default_rng(seed).normal(size=variable.shape)
    variable.assign(values)
    return np.asarray(variable)


LAYERS = {
    "dense": (lambda: keras.layers.Dense(5), (2, 6), "kernel"),
    "einsum": (
        lambda: keras.layers.EinsumDense("abc,cde->abde", (None, 2, 4)),
        (2, 3, 6),
        "kernel",
    ),
    "conv": (lambda: keras.layers.Conv2D(5, (2, 3)), (1, 4, 4, 3), "kernel"),
    "embedding": (lambda: keras.layers.Embedding(7, 5), (2, 3), "embeddings"),
}


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("alpha", [None, 6.0])
def test_a_merged_layer_has_the_kernel_of_keras(kind, alpha, tmp_path):
    make, shape, array = LAYERS[kind]
    layer = make()
    layer.build(shape)
    layer.enable_lora(2, lora_alpha=alpha)
    arrays = {
        f"layer/{variable.name}": drawn(variable, number)
        for number, variable in enumerate(layer.variables)
        if "bias" not in variable.name
    }
    source = tmp_path / "lora.safetensors"
    safetensors.numpy.save_file(arrays, source)
    done = convert_lora(
        source, tmp_path / "merged.safetensors", to="merged", alpha=alpha, verify=True
    )
    merged = safetensors.numpy.load_file(tmp_path / "merged.safetensors")[f"layer/{array}"]
    assert np.allclose(merged, np.asarray(getattr(layer, array)), atol=1e-5)
    assert done.difference < 1e-5 and done.sources == ["Keras"]


def test_a_file_of_kerashub_becomes_an_adapter_of_peft(tmp_path):
    backbone = GemmaBackbone(
        vocabulary_size=11, num_layers=2, num_query_heads=4, num_key_value_heads=2, hidden_dim=8,
        intermediate_dim=12, head_dim=3,
    )  # fmt: skip
    backbone.enable_lora(2)
    file = tmp_path / "gemma.lora.h5"
    layers = [layer for layer in backbone._flatten_layers(include_self=False) if layer.weights]
    numbers = backbone._lora_enabled_layers
    for number in numbers:
        for variable in (layers[number].lora_kernel_a, layers[number].lora_kernel_b):
            drawn(variable, number)
    backbone.save_lora_weights(file)
    # By the number of the layer, as KerasHub does.
    paths = {
        number: f"model/layers/{index // 2}/self_attn/{layers[number].name[0]}_proj"
        for index, number in enumerate(numbers)
    }
    names = {f"^lora/{number}$": path for number, path in paths.items()}
    # The shapes of Transformers' weights tell that Gemma's einsums have the heads first.
    weights = {
        f"{path.replace('/', '.')}.weight": np.zeros((12 if "q_proj" in path else 6, 8))
        for path in paths.values()
    }
    base = tmp_path / "base.safetensors"
    safetensors.numpy.save_file(weights, base)
    done = convert_lora(file, tmp_path / "peft", to="peft", rename=names, base=base, verify=True)
    assert len(done.modules) == 4 and done.difference == 0 and not done.left
    factors = safetensors.numpy.load_file(tmp_path / "peft" / "adapter_model.safetensors")
    for number, path in paths.items():
        layer, module = layers[number], path.replace("/", ".")
        A, B = (factors[f"base_model.model.{module}.lora_{side}.weight"] for side in "AB")
        a, b = np.asarray(layer.lora_kernel_a), np.asarray(layer.lora_kernel_b)
        assert np.allclose((B @ A).reshape(-1), matrix(a @ b).reshape(-1), atol=1e-5)


def matrix(update):
    """Torch's matrix of an update with the axes `(heads, inputs, size)`."""
    return update.transpose(0, 2, 1).reshape(-1, update.shape[1])
