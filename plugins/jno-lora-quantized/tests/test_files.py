"""A quantised model in one file, and files that were damaged."""

import json

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
import safetensors
import safetensors.numpy
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jno.lora import CheckpointError, Net, SelectionError, apply_lora
from jno_lora_quantized import load_quantized, quantize, save_quantized


class Model(eqx.Module):
    table: eqx.nn.Embedding
    conv: eqx.nn.Conv1d
    stack: eqx.nn.Linear
    norm: eqx.nn.LayerNorm
    steps: jax.Array
    name: str = eqx.field(static=True)

    def __init__(self, key, size=8):
        k = jr.split(key, 3)
        self.table = eqx.nn.Embedding(11, size, key=k[0], dtype=jnp.bfloat16)
        self.conv = eqx.nn.Conv1d(1, 2, 3, key=k[1])
        make = eqx.filter_vmap(lambda key: eqx.nn.Linear(size, size, key=key))
        self.stack = make(jr.split(k[2], 3))
        self.norm = eqx.nn.LayerNorm(size)
        self.steps = jnp.arange(3)
        self.name = "model"


@pytest.fixture
def model(getkey):
    return Model(getkey())


@pytest.fixture
def file(tmp_path):
    return tmp_path / "base.safetensors"


@pytest.mark.parametrize("scheme", ["nf4", "fp8"])
def test_there_and_back(getkey, model, file, scheme):
    coded = quantize(model, scheme, target="table|conv|stack", block=4)
    save_quantized(coded, file)
    template = eqx.filter_eval_shape(Model, getkey())
    for target in (template, quantize(model, "nf4")):
        loaded = load_quantized(target, file)
        assert jax.tree.structure(loaded) == jax.tree.structure(coded)
        assert loaded == coded
    assert type(loaded.conv) is type(coded.conv)
    np.testing.assert_array_equal(loaded.conv(jnp.ones((1, 5))), coded.conv(jnp.ones((1, 5))))
    mixed = quantize(model, "int8", target="conv")
    mixed = quantize(mixed, "nf4", target="stack", double=False)
    for stored, onto in ((mixed, model), (model, coded)):  # two schemes, and none
        save_quantized(stored, file)
        assert load_quantized(onto, file) == stored


def test_loads_onto_a_mesh(getkey, file):
    mesh = Mesh(np.array(jax.devices()[:2]), ("a",))
    layer = eqx.nn.Linear(8, 4, key=getkey())
    save_quantized(quantize(layer), file)
    placed = NamedSharding(mesh, PartitionSpec("a"))
    template = jax.tree.map(lambda leaf: jax.device_put(leaf, placed), layer)
    for target in (template, quantize(template)):
        loaded = load_quantized(target, file)
        assert loaded.bias.sharding == placed
        assert loaded.weight.codes.sharding.spec[0] == "a"
        np.testing.assert_array_equal(loaded.weight.codes, quantize(layer).weight.codes)


def test_models_that_cannot_be_written_or_do_not_fit_are_refused(getkey, model, file):
    for unfit, error, message in (
        (apply_lora(quantize(model), 2, key=getkey()), CheckpointError, "unwrap_lora"),
        (Net(model), SelectionError, "net.module"),
        ({"a": {"b": jnp.ones(1)}, "a/b": jnp.ones(1)}, CheckpointError, "slash"),
        ({"a": jr.key(0)}, CheckpointError, "key"),
    ):
        with pytest.raises(error, match=message):
            save_quantized(unfit, file)
    save_quantized(quantize(model), file)
    with pytest.raises(CheckpointError, match=r"stack/bias: expected float32\[3, 9\], the file"):
        load_quantized(Model(getkey(), 9), file)
    with pytest.raises(CheckpointError, match="table/weight"):
        load_quantized({"other": model.norm}, file)


def changed(file, change):
    """The file, with another description or other arrays."""
    with safetensors.safe_open(file, framework="numpy") as opened:
        content = json.loads(opened.metadata()["jno_lora_quantized"])
    tensors = safetensors.numpy.load_file(file)
    metadata = change(content, tensors)
    text = json.dumps(content) if metadata is None else metadata
    safetensors.numpy.save_file(tensors, file, metadata={"jno_lora_quantized": text})


WEIGHT = "stack/weight"
CODES, SCALES = f"{WEIGHT}/codes", f"{WEIGHT}/parts/1"
CHANGES = {
    "text": lambda content, tensors: "{",
    "version": lambda content, tensors: content.update(version=2),
    "scheme": lambda content, tensors: content["weights"][WEIGHT].update(scheme="nf5"),
    "block": lambda content, tensors: content["weights"][WEIGHT].update(block=2),
    "less": lambda content, tensors: content["weights"][WEIGHT].pop("dtype"),
    "dtype": lambda content, tensors: content["weights"][WEIGHT].update(dtype="int8"),
    "stack": lambda content, tensors: content["weights"][WEIGHT].update(stack_ndim=0),
    "a norm": lambda content, tensors: content["weights"].update(
        {"norm/weight": {**content["weights"][WEIGHT], "stack_ndim": 0}}
    ),
    "no codes": lambda content, tensors: tensors.pop(CODES) is None or None,
    "codes": lambda content, tensors: tensors.update({CODES: tensors[CODES].astype(np.int8)}),
    "an array more": lambda content, tensors: tensors.update(x=np.ones(1)),
    "scales": lambda content, tensors: tensors.update({SCALES: tensors[SCALES][..., :-1]}),
}


@pytest.mark.parametrize("scheme", ["nf4", "int8"])
def test_a_flipped_bit_in_any_array_is_refused_and_named(model, file, scheme):
    save_quantized(quantize(model, scheme, target="conv|stack", block=4), file)
    whole = file.read_bytes()
    begin = 8 + int.from_bytes(whole[:8], "little")
    for name, info in json.loads(whole[8:begin]).items():
        if name == "__metadata__":
            continue
        damaged = bytearray(whole)
        damaged[begin + info["data_offsets"][0]] ^= 1
        file.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"(?s)base\.safetensors.*damaged") as caught:
            load_quantized(model, file)
        assert repr(name) in str(caught.value)


@pytest.mark.parametrize("change", CHANGES)
def test_changed_files_are_refused(model, file, change):
    save_quantized(quantize(model), file)
    changed(file, CHANGES[change])
    with pytest.raises(CheckpointError, match=r"base\.safetensors"):
        load_quantized(model, file)


def test_a_file_without_checksums_loads_and_other_files_are_refused(model, file):
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_quantized(model, file)
    safetensors.numpy.save_file({"a": np.ones(1)}, file)
    with pytest.raises(CheckpointError, match="not a file of save_quantized"):
        load_quantized(model, file)
    save_quantized(coded := quantize(model), file)
    changed(file, lambda content, tensors: None)  # as before
    assert load_quantized(model, file) == coded
    content = file.read_bytes()
    for length in (0, 7, 100, len(content) - 1):
        file.write_bytes(content[:length])
        with pytest.raises(CheckpointError, match=r"base\.safetensors"):
            load_quantized(model, file)
