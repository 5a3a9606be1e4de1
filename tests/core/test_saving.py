"""Adapters are saved to a file and loaded again: what comes back, and what is refused."""

import json
import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors
from jax.sharding import NamedSharding, PartitionSpec

from jno.lora import (
    AdapterSet,
    CheckpointError,
    JnoLoraWarning,
    LoRAWrapper,
    Net,
    PluginError,
    Registry,
    SelectionError,
    apply_lora,
    extract_adapters,
    load_adapters,
    lora_trainable_filter,
    partial_lora_trainable_filter,
    read_adapters,
    refresh,
    registered,
    save_adapters,
)

from .toys import (
    MODEL_LINEARS,
    Block,
    Model,
    ToyBlock,
    ToyLinear,
    ToyScale,
    ToyStacked,
    same,
    selected,
    shaken,
)

OWN = [ToyLinear, ToyScale, ToyStacked]


@pytest.fixture
def file(tmp_path):
    return tmp_path / "adapters.safetensors"


@pytest.fixture(autouse=True)
def _no_plugins(registry):
    """The adapters here come from no plugin, and none is looked for."""


def adapted(model, getkey, wrapper=ToyLinear, rank=2, **options):
    model = apply_lora(model, rank, 3.0, key=getkey(), wrappers=wrapper, **options)
    return shaken(model)


# --- what comes back


def test_a_loaded_model_is_the_saved_one(model, getkey, file):
    trained = adapted(model, getkey)
    save_adapters(trained, file)
    assert same(load_adapters(model, file, wrappers=OWN), trained)


def test_the_library_can_read_the_file(model, getkey, file):
    save_adapters(adapted(model, getkey, target="head"), file)
    with safetensors.safe_open(file, "np") as opened:
        assert set(opened.keys()) == {"head:lora_A", "head:lora_B"}
        assert opened.get_tensor("head:lora_A").shape == (2, 3)
        (configuration,) = opened.metadata().values()
    assert json.loads(configuration)["adapters"]["head"] == {
        "wrapper": "ToyLinear",
        "distribution": None,
        "version": "",
        "variant": None,
        "rank": 2,
        "alpha": 3.0,
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


def test_the_same_adapters_make_the_same_file(model, getkey, file):
    trained = adapted(model, getkey)
    save_adapters(trained, file)
    first = file.read_bytes()
    save_adapters(trained, str(file))
    assert file.read_bytes() == first


class Assorted(LoRAWrapper):
    """Arrays of many forms, some of them nested; the constructor makes them all float32."""

    adapter_fields = ("trained",)
    base: eqx.nn.Linear
    trained: jax.Array
    kept: dict
    rank: int = eqx.field(static=True)
    alpha: float = eqx.field(static=True)

    @classmethod
    def applies_to(cls, leaf) -> bool:
        return isinstance(leaf, eqx.nn.Linear)

    def __init__(self, base, rank, alpha, *, key):
        self.base, self.rank, self.alpha = base, rank, alpha
        self.trained = jnp.zeros((rank, 3))
        self.kept = {"scalar": jnp.zeros(()), "none": jnp.zeros((0, 2)), "a": [jnp.zeros(5)]}

    def __call__(self, x):
        return self.base(x)

    def merge(self):
        return self.base


NARROW = ["bfloat16", "float16", "float32", "float8_e4m3fn", "float8_e5m2", "complex64"]
WIDE = ["float64", "int64", "uint64"]
WHOLE = ["int8", "int16", "int32", "uint8", "uint16", "uint32", "bool"]


@pytest.mark.parametrize("dtype", [*NARROW, *WHOLE, *WIDE])
def test_every_bit_of_every_dtype_comes_back(dtype, getkey, file):
    with jax.enable_x64(dtype in WIDE):
        base = eqx.nn.Linear(4, 3, dtype=jnp.float32, key=getkey())
        numbers = np.array([0, 1, 2, 3, 100]).astype(dtype)
        kept = {
            "scalar": jnp.asarray(numbers[4]),
            "none": jnp.zeros((0, 2), dtype),
            "a": [jnp.asarray(numbers)],
        }
        wrapper = Assorted(base, 2, 1.0, key=getkey())
        wrapper = eqx.tree_at(lambda w: w.kept, wrapper, kept)
        if dtype in (*NARROW, "float64"):
            wrapper = eqx.tree_at(lambda w: w.trained, wrapper, wrapper.trained.astype(dtype))
        save_adapters(wrapper, file)
        assert same(load_adapters(base, file, wrappers=Assorted), wrapper)


def test_wide_numbers_are_not_narrowed_silently(getkey, file):
    with jax.enable_x64(True):
        base = eqx.nn.Linear(4, 3, dtype=jnp.float32, key=getkey())
        wrapper = Assorted(base, 2, 1.0, key=getkey())
        save_adapters({"a": eqx.tree_at(lambda w: w.trained, wrapper, jnp.ones((2, 3)))}, file)
    with pytest.raises(CheckpointError, match=r"a/trained: float64, which JAX .*jax_enable_x64"):
        load_adapters({"a": base}, file, wrappers=[Assorted])


def test_numbers_that_train_must_be_real(getkey, file):
    base = eqx.nn.Linear(4, 3, key=getkey())
    wrapper = Assorted(base, 2, 1.0, key=getkey())
    whole = eqx.tree_at(lambda w: w.trained, wrapper, jnp.ones((2, 3), jnp.int32))
    save_adapters({"a": whole}, file)
    with pytest.raises(CheckpointError, match="a/trained: int32, but it trains"):
        load_adapters({"a": base}, file, wrappers=[Assorted])


def test_a_stack_comes_back_whole(getkey, file):
    stack = eqx.filter_vmap(lambda key: eqx.nn.Linear(4, 3, key=key))(jax.random.split(getkey(), 2))
    trained = adapted([stack], getkey, ToyStacked)
    save_adapters(trained, file)
    assert same(load_adapters([stack], file, wrappers=OWN), trained)
    assert read_adapters(file, wrappers=OWN)["0"].layer.stack_ndim == 1


def test_sharded_arrays_are_gathered_and_lie_as_the_base_does(getkey, file):
    mesh = jax.make_mesh((8,), ("x",))
    place = NamedSharding(mesh, PartitionSpec(None, "x"))
    plain = eqx.nn.Linear(16, 4, key=getkey())
    base = eqx.tree_at(lambda m: m.weight, plain, jax.device_put(plain.weight, place))
    trained = adapted([base], getkey)
    cut = eqx.tree_at(lambda m: m[0].lora_A, trained, replace_fn=lambda a: jax.device_put(a, place))
    save_adapters(cut, file)
    loaded = load_adapters([base], file, wrappers=OWN)
    assert same(loaded, trained)
    assert loaded[0].base.weight.sharding == place
    assert loaded[0].lora_A.sharding.device_set == set(mesh.devices.flat)
    alone = load_adapters([plain], file, wrappers=OWN)
    assert jnp.array_equal(alone[0].lora_A, np.asarray(trained[0].lora_A))
    assert len(alone[0].lora_A.sharding.device_set) == 1


def test_adapters_go_to_the_device_of_their_layer(getkey, file):
    base = [eqx.nn.Linear(4, 3, key=getkey())]
    save_adapters(adapted(base, getkey), file)
    there = jax.tree.map(lambda a: jax.device_put(a, jax.devices()[3]), base)
    loaded = load_adapters(there, file, wrappers=OWN)
    assert {array.device for array in jax.tree.leaves(loaded)} == {jax.devices()[3]}


def test_a_set_is_saved_and_read_without_a_model(model, getkey, file):
    adapters = extract_adapters(adapted(model, getkey))
    save_adapters(adapters, file)
    again = read_adapters(file, wrappers=OWN)
    assert isinstance(again, AdapterSet)
    assert same(again, adapters)


def test_layers_that_the_file_does_not_name_stay_as_they_are(model, getkey, file):
    saved = adapted(model, getkey, target="head")
    save_adapters(saved, file)
    other = adapted(model, getkey, ToyScale, target="head|encoder/0")
    loaded = load_adapters(other, file, wrappers=OWN)
    assert same(loaded.head, saved.head)
    assert same(loaded.encoder, other.encoder)


def test_numpy_arrays_are_saved(model, getkey, file):
    trained = adapted(model, getkey, target="head")
    save_adapters(jax.device_get(trained), file)
    assert same(load_adapters(model, file, wrappers=OWN), trained)


# --- Net


def test_after_loading_the_adapters_train_and_nothing_else_changed(model, getkey, file):
    Net(model).freeze().lora(2, wrapper=ToyScale, target="head").save_adapters(file)
    net = Net(model).freeze().lora(2, wrapper=ToyLinear, target="head|encoder/1").freeze()
    net.mask("embedding|head/base").unfreeze()
    assert net.load_adapters(file, wrappers=OWN) is net
    assert selected(net.trainable) == {"head/gain", "embedding/weight"}
    assert jax.tree.structure(net.trainable) == jax.tree.structure(net.module)
    fresh = load_adapters(Net(model), file, wrappers=OWN)
    assert isinstance(fresh, Net)
    assert same(fresh.trainable, partial_lora_trainable_filter(fresh.module))


def test_a_net_uses_its_own_registry(model, file):
    mine = Registry(discover=False)
    mine.register(ToyLinear)
    Net(model, registry=mine).freeze().lora(2, wrapper="ToyLinear").save_adapters(file)
    again = Net(model, registry=mine).load_adapters(file)
    assert isinstance(again.module.head, ToyLinear)
    with pytest.raises(CheckpointError, match="ToyLinear"):
        Net(model).load_adapters(file)


def test_what_trains_and_is_not_saved_is_told(model, file):
    net = Net(model).lora(2, wrapper=ToyLinear, target="head")
    with pytest.warns(JnoLoraWarning, match=r"6 other arrays train too(.|\n)*embedding/weight"):
        net.save_adapters(file)
    with pytest.warns(JnoLoraWarning, match="6 other arrays"):
        save_adapters(net, file)
    assert list(read_adapters(file, wrappers=OWN)) == ["head"]


def test_a_pending_mask_is_refused(model, getkey, file):
    save_adapters(adapted(model, getkey), file)
    with pytest.raises(SelectionError, match="A mask is pending"):
        Net(model).mask("head").load_adapters(file, wrappers=OWN)


def test_a_net_that_could_not_load_is_as_it_was(model, getkey, file):
    save_adapters(adapted({"other": eqx.nn.Linear(2, 2, key=getkey())}, getkey), file)
    net = Net(model).freeze()
    with pytest.raises(CheckpointError):
        net.load_adapters(file, wrappers=OWN)
    assert net.module is model
    assert selected(net.trainable) == set()


@pytest.mark.parametrize("saved", ["in the block", "the block"])
def test_an_adapter_of_a_part_and_one_of_the_whole_do_not_displace_each_other(saved, getkey, file):
    model = {"block": Block(2, key=getkey()), "head": eqx.nn.Linear(2, 2, key=getkey())}
    wrappers = {"in the block": (ToyLinear, "up|head"), "the block": ([ToyBlock, ToyLinear], "")}
    wrapper, target = wrappers.pop(saved)
    save_adapters(apply_lora(model, 1, key=getkey(), wrappers=wrapper, target=target), file)
    ((other, target),) = wrappers.values()
    net = Net(model).freeze().lora(1, wrapper=other, target=target)
    before = net.module
    with pytest.raises(CheckpointError, match="block"):
        net.load_adapters(file, wrappers=[ToyBlock, ToyLinear])
    assert net.module is before
    with pytest.warns(JnoLoraWarning, match="1 of 2 adapters(.|\n)*block"):
        net.load_adapters(file, wrappers=[ToyBlock, ToyLinear], strict=False)
    assert same(net.module["block"], before["block"])


# --- what does not fit


def test_every_mismatch_is_listed_and_nothing_changes(model, getkey, file):
    save_adapters(adapted(model, getkey), file)
    wider = Model(getkey(), size=4)
    wider = eqx.tree_at(lambda m: m.encoder, wider, wider.encoder[:1])
    with pytest.raises(CheckpointError) as caught:
        load_adapters(wider, file, wrappers=OWN)
    message = str(caught.value)
    assert str(file) in message
    assert "encoder/0/weight: the adapter was made for float32[3, 3], the Linear has" in message
    assert "encoder/0/bias" in message
    assert "encoder/1: the model has no layer there (the nearest is 'encoder/0')" in message
    assert "head/weight" in message


def test_a_state_of_another_form_is_listed_too(model, getkey, file):
    save_adapters(adapted(model, getkey), file)

    class Grown(ToyLinear):
        def __init__(self, base, rank, alpha, *, key):
            ToyLinear.__init__(self, base, rank + 1, alpha, key=key)

    Grown.__name__ = "ToyLinear"
    with pytest.raises(CheckpointError) as caught:
        load_adapters(model, file, wrappers=[Grown])
    for path in ("encoder/0", "encoder/1"):
        assert f"{path}: no ToyLinear can be made" in str(caught.value)
    assert "expected shape (3, 3), got (2, 3)" in str(caught.value)


def test_what_fits_is_loaded_if_asked_and_the_rest_is_told(model, getkey, file):
    trained = adapted(model, getkey)
    save_adapters(trained, file)
    other = eqx.tree_at(lambda m: m.head, model, eqx.nn.Linear(3, 5, key=getkey()))
    with pytest.warns(JnoLoraWarning, match=r"2 of 3 adapters .* were loaded") as caught:
        loaded = load_adapters(other, file, strict=False, wrappers=OWN)
    assert "head/weight" in str(caught[0].message)
    assert same(loaded.encoder, trained.encoder)
    assert same(loaded.head, other.head)


def test_what_was_turned_into_an_error_changed_nothing(model, getkey, file):
    save_adapters(adapted(model, getkey), file)
    net = Net(eqx.tree_at(lambda m: m.head, model, eqx.nn.Linear(3, 5, key=getkey())))
    before = net.module
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(JnoLoraWarning):
            net.load_adapters(file, strict=False, wrappers=OWN)
    assert net.module is before


def test_nan_and_infinity_are_loaded_and_told(model, getkey, file):
    trained = adapted(model, getkey)
    bad = jnp.asarray([[jnp.nan, 1.0], [jnp.inf, 1.0]])
    trained = eqx.tree_at(lambda m: m.head.lora_B, trained, bad)
    save_adapters(trained, file)
    with pytest.warns(JnoLoraWarning, match="head:lora_B: 2 of 4 numbers") as caught:
        loaded = load_adapters(model, file, wrappers=OWN)
    assert len(caught) == 1
    assert np.array_equal(loaded.head.lora_B, bad, equal_nan=True)


def test_layers_of_one_path_are_not_confused(getkey, file):
    layer = eqx.nn.Linear(2, 2, key=getkey())
    save_adapters(adapted({"a": {"b": layer}}, getkey), file)
    with pytest.raises(CheckpointError, match="Two layers have the path 'a/b'"):
        load_adapters({"a": {"b": layer}, "a/b": layer}, file, wrappers=OWN)


# --- what cannot be saved


@pytest.mark.parametrize("key", ["", "..", ".", "a\nb", "/etc", "a//b", "x" * 3000])
def test_paths_that_no_file_may_hold_are_refused(key, getkey, file):
    model = adapted({key: eqx.nn.Linear(2, 2, key=getkey())}, getkey)
    if key == "":  # as the root's own path
        save_adapters(model, file)
        return
    with pytest.raises(CheckpointError, match=r"path (.* )?of an adapter"):
        save_adapters(model, file)
    assert not file.exists()


def test_names_that_would_be_one_are_refused(getkey, file):
    layers = {key: eqx.nn.Linear(4, 3, key=getkey()) for key in ("a", "a:kept/b")}
    model = apply_lora(layers, 2, key=getkey(), wrappers=Assorted)
    model["a"] = eqx.tree_at(lambda w: w.kept, model["a"], {"b:kept/b": jnp.ones(2)})
    model["a:kept/b"] = eqx.tree_at(lambda w: w.kept, model["a:kept/b"], {"b": jnp.ones(2)})
    with pytest.raises(CheckpointError, match="two of its arrays have the same name"):
        save_adapters(model, file)


def test_a_model_without_adapters_is_not_saved(model, file):
    with pytest.raises(CheckpointError, match="no adapters to save"):
        save_adapters(model, file)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (lambda: jax.random.key(0), "typed PRNG key"),
        (lambda: jnp.ones(2, jnp.int4), "dtype int4"),
        (lambda: _deleted(), "was deleted: a compiled step"),
    ],
)
def test_arrays_that_cannot_be_saved_are_named(array, message, getkey, file):
    wrapper = Assorted(eqx.nn.Linear(4, 3, key=getkey()), 2, 1.0, key=getkey())
    wrapper = eqx.tree_at(lambda w: w.kept["a"], wrapper, array())
    with pytest.raises(CheckpointError, match=f"'kept/a' of the Assorted at 'x'.*{message}"):
        save_adapters({"x": wrapper}, file)


def _deleted():
    array = jnp.ones(2)
    array.delete()
    return array


def test_nothing_is_saved_in_a_program_that_is_traced(model, getkey, file):
    trained = adapted(model, getkey)
    with pytest.raises(CheckpointError, match="Save outside of `jit`"):
        eqx.filter_jit(lambda model: save_adapters(model, file))(trained)
    with pytest.raises(CheckpointError, match="no array"):
        save_adapters(eqx.filter_eval_shape(lambda: trained), file)


# --- where the classes come from

SHIFT = '"Shift", variant="shift"'


def shifted(model, getkey):
    (record,) = [r for r in registered() if r.distribution == "shifts"]
    return adapted(model, getkey, record.wrappers[0].cls, rank=1)


def test_a_class_is_found_by_the_plugin_that_provides_it(site, model, getkey, file):
    site.plugin("shifts", SHIFT, version="1.2.3")
    trained = shifted(model, getkey)
    save_adapters(trained, file)
    refresh()
    assert same(load_adapters(model, file), trained)


def test_a_class_that_was_imported_is_still_known_to_be_a_plugins(site, model, getkey, file):
    module = site.plugin("shifts", SHIFT)
    cls = __import__(module).CLASSES[0]
    trained = adapted(model, getkey, cls, rank=1)
    save_adapters(trained, file)
    assert same(load_adapters(model, file), trained)


def unavailable(file, model, **options):
    with pytest.raises(CheckpointError) as caught:
        load_adapters(model, file, **options)
    assert isinstance(caught.value.__cause__, PluginError)
    return str(caught.value)


def test_a_missing_plugin_is_named_with_its_command(site, model, getkey, file, monkeypatch):
    with monkeypatch.context() as inside:
        site.monkeypatch = inside
        site.plugin("shifts", SHIFT, version="1.2.3")
        save_adapters(shifted(model, getkey), file)
    refresh()
    message = unavailable(file, model)
    assert "encoder/0, encoder/1, head: Shift is not available: shifts is not installed" in message
    assert 'pip install -U "shifts>=1.2.3"' in message
    with pytest.warns(JnoLoraWarning, match="0 of 3 adapters"):
        assert same(load_adapters(model, file, strict=False), model)


def test_a_plugin_that_is_blocked_broken_or_old_is_named(
    site, model, getkey, file, monkeypatch, unchecked
):
    site.plugin("shifts", SHIFT, version="2.0")
    save_adapters(shifted(model, getkey), file)
    monkeypatch.setenv("JNO_LORA_BLOCK", "shifts")
    refresh()
    assert "blocked: it is named in JNO_LORA_BLOCK" in unavailable(file, model)
    monkeypatch.delenv("JNO_LORA_BLOCK")

    for version, code, told in [
        ("1.9.9", None, "saved with Shift of shifts 2.0, which is newer than the installed 1.9.9"),
        ("2.0", "raise RuntimeError('no such thing')", "failed: RuntimeError: no such thing"),
        ("2.0", "jno_lora_api = 99", "incompatible"),
        ("2.0", "@hookimpl\ndef jno_lora_wrappers():\n    return []", "has no adapter 'Shift'"),
    ]:
        if code is None:
            site.plugin("shifts", SHIFT, version=version)
        else:
            site.install("shifts", code, version=version)
        refresh()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            message = unavailable(file, model)
        assert told in message
        assert 'pip install -U "shifts>=2.0"' in message


def test_a_class_of_no_plugin_is_passed_or_registered(model, getkey, file, registry):
    trained = adapted(model, getkey)
    save_adapters(trained, file)
    message = unavailable(file, model)
    assert "ToyLinear is a class that no plugin provides" in message
    assert "wrappers=[ToyLinear]" in message
    registry.register(ToyLinear)
    assert same(load_adapters(model, file), trained)
    save_adapters(trained, file)
    assert same(load_adapters(model, file, wrappers=[ToyScale, ToyLinear]), trained)


def test_two_classes_of_one_name_are_refused(model, getkey, file):
    save_adapters(adapted(model, getkey), file)
    other = type(ToyLinear)("ToyLinear", (ToyLinear,), {})
    with pytest.raises(SelectionError, match="two classes of the name 'ToyLinear'"):
        load_adapters(model, file, wrappers=[ToyLinear, other])


# --- Equinox's own route


def test_the_adapter_partition_goes_through_equinox(model, getkey, file):
    trained = adapted(model, getkey)
    adapters, _ = eqx.partition(trained, lora_trainable_filter(trained))
    eqx.tree_serialise_leaves(file, adapters)
    skeleton = apply_lora(model, 2, 3.0, key=getkey(), wrappers=ToyLinear)
    like, rest = eqx.partition(skeleton, lora_trainable_filter(skeleton))
    assert same(eqx.combine(eqx.tree_deserialise_leaves(file, like), rest), trained)


def test_a_set_goes_through_equinox_with_what_does_not_train(model, getkey, file):
    trained = adapted(model, getkey, ToyScale)
    eqx.tree_serialise_leaves(file, extract_adapters(trained))
    like = extract_adapters(apply_lora(model, 2, 3.0, key=getkey(), wrappers=ToyScale))
    assert same(eqx.tree_deserialise_leaves(file, like), extract_adapters(trained))
    assert list(like) == list(MODEL_LINEARS)
