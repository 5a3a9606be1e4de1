"""Adapters are saved to a file and loaded again: what comes back, and what is refused."""

import json

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jno.lora import (
    AdapterSet,
    CheckpointError,
    Net,
    apply_lora,
    extract_adapters,
    load_adapters,
    read_adapters,
    save_adapters,
)
from jno.lora._checkpoint.file import DTYPES

from ..toys import ToyLinear, ToyScale, ToyStacked, same
from ._tools import OWN, Assorted, adapted


def test_a_loaded_model_is_the_saved_one(model, getkey, file):
    trained = adapted(model, getkey)
    save_adapters(trained, file)
    first = file.read_bytes()
    assert same(load_adapters(model, file, wrappers=OWN), trained)
    save_adapters(jax.device_get(trained), str(file))  # NumPy's arrays, into the same file
    assert file.read_bytes() == first
    # As a set, without a model.
    adapters = extract_adapters(trained)
    save_adapters(adapters, file)
    assert isinstance(read_adapters(file, wrappers=OWN), AdapterSet)
    assert same(read_adapters(file, wrappers=OWN), adapters)


def test_the_library_can_read_the_file(model, getkey, file):
    save_adapters(adapted(model, getkey, target="head"), file, base_values=False)
    with safetensors.safe_open(file, "np") as opened:
        assert set(opened.keys()) == {"head:lora_A", "head:lora_B"}
        assert opened.get_tensor("head:lora_A").shape == (2, 3)
        metadata = opened.metadata()
    assert metadata.keys() == {"jno.lora", "jno.lora.crc32"}
    assert json.loads(metadata["jno.lora"])["adapters"]["head"] == {
        "wrapper": "ToyLinear",
        "distribution": None,
        "version": "",
        "variant": None,
        "rank": 2,
        "alpha": 3.0,
        "base_values": None,
        "arrays": ["lora_A", "lora_B"],
        "layer": {
            "class": "Linear",
            "stack_ndim": 0,
            "arrays": {
                "weight": {"shape": [2, 3], "dtype": "float32"},
                "bias": {"shape": [2], "dtype": "float32"},
            },
        },
    }


NARROW = ["bfloat16", "float16", "float32", "float8_e4m3fn", "float8_e5m2", "complex64"]
WIDE = ["float64", "int64", "uint64"]
WHOLE = ["int8", "int16", "int32", "uint8", "uint16", "uint32", "bool"]


@pytest.mark.parametrize("dtypes", [[*NARROW, *WHOLE], WIDE], ids=["narrow", "wide"])
def test_every_bit_of_every_dtype_comes_back(dtypes, getkey, file):
    with jax.enable_x64(dtypes is WIDE):
        base = eqx.nn.Linear(4, 3, dtype=jnp.float32, key=getkey())
        model = {}
        for dtype in dtypes:
            numbers = np.array([0, 1, 2, 3, 100]).astype(dtype)
            kept = {"scalar": jnp.asarray(numbers[4]), "none": jnp.zeros((0, 2), dtype)}
            wrapper = Assorted(base, 2, 1.0, key=getkey())
            kept["a"] = [jnp.asarray(numbers)]
            wrapper = eqx.tree_at(lambda w: w.kept, wrapper, kept)
            if dtype in (*NARROW, "float64"):
                wrapper = eqx.tree_at(lambda w: w.trained, wrapper, wrapper.trained.astype(dtype))
            model[dtype] = wrapper
        save_adapters(model, file)
        loaded = load_adapters(dict.fromkeys(dtypes, base), file, wrappers=Assorted)
        assert same(loaded, model)
    # The names of dtypes are those of the format.
    for dtype in dtypes:
        code = next(code for code, held in DTYPES.items() if held == dtype)
        safetensors.numpy.save_file({"x": np.zeros(5).astype(dtype)}, file)
        assert f'"dtype":"{code}"'.encode() in file.read_bytes()


def test_wide_numbers_are_not_narrowed_silently(getkey, file):
    base = eqx.nn.Linear(4, 3, dtype=jnp.float32, key=getkey())
    with jax.enable_x64(True):
        wrapper = Assorted(base, 2, 1.0, key=getkey())
        save_adapters({"a": eqx.tree_at(lambda w: w.trained, wrapper, jnp.ones((2, 3)))}, file)
    with pytest.raises(CheckpointError, match=r"a:trained: float64, which JAX .*jax_enable_x64"):
        load_adapters({"a": base}, file, wrappers=[Assorted])


def test_a_stack_comes_back_whole(getkey, file):
    stack = eqx.filter_vmap(lambda key: eqx.nn.Linear(4, 3, key=key))(jax.random.split(getkey(), 2))
    trained = adapted([stack], getkey, ToyStacked)
    save_adapters(trained, file)
    assert same(load_adapters([stack], file, wrappers=OWN), trained)
    assert read_adapters(file, wrappers=OWN)["0"].layer.stack_ndim == 1


def test_sharded_arrays_are_gathered_and_lie_as_the_base_does(getkey, file):
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
    place = NamedSharding(mesh, PartitionSpec(None, "x"))
    plain = eqx.nn.Linear(16, 4, key=getkey())
    base = eqx.tree_at(lambda m: m.weight, plain, jax.device_put(plain.weight, place))
    trained = adapted([base], getkey)
    cut = eqx.tree_at(lambda m: m[0].lora_A, trained, replace_fn=lambda a: jax.device_put(a, place))
    save_adapters(cut, file)
    assert same(load_adapters([base], file, wrappers=OWN), trained)
    # They go to the device of their layer, too.
    there = jax.tree.map(lambda a: jax.device_put(a, jax.devices()[3]), [plain])
    alone = load_adapters(there, file, wrappers=OWN)
    assert {array.device for array in jax.tree.leaves(alone)} == {jax.devices()[3]}


def test_layers_that_the_file_does_not_name_stay_as_they_are(model, getkey, file):
    saved = adapted(model, getkey, target="head")
    save_adapters(saved, file)
    other = adapted(model, getkey, ToyScale, target="head|encoder/0")
    loaded = load_adapters(other, file, wrappers=OWN)
    assert same(loaded.head, saved.head)
    assert same(loaded.encoder, other.encoder)


def test_paths_and_names_that_no_file_may_hold_are_refused(model, getkey, file):
    with pytest.raises(CheckpointError, match="no adapters to save"):
        save_adapters(model, file)
    for key in ("a\nb", "//shared"):
        odd = adapted({key: eqx.nn.Linear(2, 2, key=getkey())}, getkey)
        with pytest.raises(CheckpointError, match="not the path of an adapter"):
            save_adapters(odd, file)
    layers = {key: eqx.nn.Linear(4, 3, key=getkey()) for key in ("a", "a:kept/b")}
    model = apply_lora(layers, 2, key=getkey(), wrapper=Assorted)
    model["a"] = eqx.tree_at(lambda w: w.kept, model["a"], {"b:kept/b": jnp.ones(2)})
    model["a:kept/b"] = eqx.tree_at(lambda w: w.kept, model["a:kept/b"], {"b": jnp.ones(2)})
    with pytest.raises(CheckpointError, match="two of its arrays have the same name"):
        save_adapters(model, file)
    assert not file.exists()


def test_arrays_that_cannot_be_saved_are_named(getkey, file):
    deleted = jnp.ones(2)
    deleted.delete()
    wrapper = Assorted(eqx.nn.Linear(4, 3, key=getkey()), 2, 1.0, key=getkey())
    for array, message in [
        (jax.random.key(0), "jax.random.key_data"),
        (jnp.ones(2, jnp.int4), "dtype int4"),
        (deleted, "deleted"),
    ]:
        unsaved = eqx.tree_at(lambda w: w.kept["a"], wrapper, array)
        with pytest.raises(CheckpointError, match=f"'x:kept/a'.*{message}"):
            save_adapters({"x": unsaved}, file)


def test_nothing_is_saved_in_a_program_that_is_traced(model, getkey, file):
    trained = adapted(model, getkey)
    with pytest.raises(CheckpointError, match="not an array with values"):
        eqx.filter_jit(lambda model: save_adapters(model, file))(trained)
    with pytest.raises(CheckpointError, match="metadata/nu is not an array with values"):
        jax.jit(lambda nu: save_adapters(trained, file, metadata={"nu": [nu]}))(0.5)
    with pytest.raises(CheckpointError, match="not an array with values"):
        save_adapters(eqx.filter_eval_shape(lambda: trained), file)


def test_half_a_model_is_refused_and_nothing_is_written(model, file):
    for half in Net(model).freeze().lora(2, wrapper=ToyLinear).partition():
        with pytest.raises(CheckpointError, match=r"one half of a model.*net\.update\(trainable\)"):
            save_adapters(half, file)
        assert not file.exists()
