"""Files know the values of the layers that their adapters were made for."""

import gc
import hashlib
import json

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jno.lora import (
    CheckpointError,
    JnoLoraWarning,
    LayerForm,
    Net,
    SelectionError,
    apply_lora,
    extract_adapters,
    load_adapters,
    read_adapters,
    save_adapters,
)
from jno.lora._checkpoint import base_values

from ..toys import ToyLinear, same
from ._tools import OWN, adapted, assembled, parts


class Shifted(ToyLinear):
    """Starts by changing its base, as PiSSA does; `unwrap` restores it up to rounding only."""

    def __init__(self, base, rank, alpha, *, key):
        super().__init__(base, rank, alpha, key=key)
        self.base = eqx.tree_at(lambda layer: layer.weight, base, base.weight + 0.1)

    def unwrap(self):
        return eqx.tree_at(lambda layer: layer.weight, self.base, self.base.weight - 0.1)


class Odd(eqx.Module):
    """A layer with a key, integers, bools, a scalar and an empty array beside its weight."""

    weight: jax.Array
    others: dict
    function: object = eqx.field(static=True)
    in_features: int = eqx.field(static=True)
    out_features: int = eqx.field(static=True)


def odd(weight=1.0, **changes):
    others = {"key": jax.random.key(0), "ids": np.arange(3), "flags": jnp.asarray([True, False])}
    others |= {"scale": jnp.asarray(2.0), "none": jnp.zeros((0, 4)), **changes}
    return Odd(jnp.full((2, 3), weight), others, lambda x: x, 3, 2)


class ToyOdd(ToyLinear):
    @classmethod
    def applies_to(cls, leaf):
        return isinstance(leaf, Odd)


CLASSES = [*OWN, Shifted, ToyOdd]


def entries(file):
    """The adapters in the configuration of a file, by path."""
    return parts(file.read_bytes())[1]["adapters"]


def known(file):
    return {path: entry["base_values"] is not None for path, entry in entries(file).items()}


def changed(model, at=lambda m: m.head):
    """`model` with another weight of the layer that `at` gives."""
    return eqx.tree_at(lambda m: at(m).weight, model, at(model).weight.at[0, 0].add(2**-8))


def load(model, file, **options):
    return load_adapters(model, file, wrappers=CLASSES, **options)


def refused(model, file, why="head: the values of the layer cannot be compared"):
    with pytest.raises(CheckpointError, match=why):
        load(model, file, strict="values")


def test_the_hash_is_the_hash_of_path_form_and_bytes(model, getkey, file):
    save_adapters(adapted(model, getkey, target="head"), file)
    lines = [
        [name, "float32", list(array.shape), hashlib.sha256(np.asarray(array)).hexdigest()]
        for name, array in (("bias", model.head.bias), ("weight", model.head.weight))
    ]
    digest = hashlib.sha256("".join(map(json.dumps, lines)).encode()).hexdigest()
    assert entries(file)["head"]["base_values"] == f"sha256:{digest}"


def test_the_same_base_loads_without_a_word_and_another_base_is_told(model, getkey, file):
    save_adapters(adapted(model, getkey), file)
    assert all(known(file).values()) and len(known(file)) > 1
    loaded = load(model, file, strict="values")
    assert same(load(loaded, file, strict="values"), loaded)  # around the base that it carries
    other = changed(changed(model), lambda m: m.encoder[1])
    with pytest.warns(JnoLoraWarning, match=r"another base(.|\n)*encoder/1\n  - head\n") as told:
        loaded = load(other, file)
    assert "encoder/0" not in str(told[0].message) and "strict='values'" in str(told[0].message)
    assert isinstance(loaded.head, ToyLinear)
    for around in (apply_lora(other, 1, key=getkey(), wrapper=ToyLinear), Net(other)):
        with pytest.warns(JnoLoraWarning, match="other values"):
            load(around, file)


def test_what_strict_says_of_another_base(model, getkey, file, unchecked):
    save_adapters(adapted(model, getkey), file)
    net = Net(changed(model))
    other = net.module
    refused(net, file, "  - head: the layer has other values than the layer")
    assert net.module is other
    # Together with what does not fit.
    wrong = eqx.tree_at(lambda m: m.encoder[0], other, eqx.nn.Linear(3, 7, key=getkey()))
    refused(wrong, file, r"encoder/0/weight: the adapter(.|\n)*head: the layer")
    with pytest.warns(JnoLoraWarning) as told:
        load(wrong, file, strict=False)
    assert ["other values" in str(warning.message) for warning in told] == [True, False]
    with pytest.raises(SelectionError, match="`strict` must be True, False or 'values'"):
        load(model, file, strict="value")


def test_a_file_without_hashes_fits_every_base(model, getkey, file):
    save_adapters(adapted(model, getkey), file, base_values=False)
    assert not any(known(file).values())
    header, configuration, data = parts(file.read_bytes())
    # As they are now, from before there were hashes, and from a version with another algorithm.
    for change in ({"base_values": None}, None, {"base_values": "blake3:0123456789abcdef"}):
        for entry in configuration["adapters"].values():
            entry.update(change or {})
            if change is None:
                del entry["base_values"]
        file.write_bytes(assembled(header, configuration, data))
        load(changed(model), file)
        refused(model, file)
    # Nor can values of another precision be compared.
    half = jax.tree.map(lambda a: a.astype(jnp.bfloat16) if eqx.is_array(a) else a, model)
    save_adapters(adapted(half, getkey), file)
    load(half, file, strict="values")
    load(model, file)
    refused(model, file)


def test_an_adapter_that_changed_its_base_has_the_hash_that_a_net_knows(model, getkey, file):
    save_adapters(adapted(model, getkey, Shifted), file)
    assert not any(known(file).values())
    net = Net(model).freeze().lora(2, wrapper=Shifted)
    net.save_adapters(file)
    assert all(known(file).values())
    load(model, file, strict="values")
    net.load_adapters(file, wrappers=CLASSES, strict="values")
    assert isinstance(net.module.head, Shifted)
    # A layer that only the adapter holds is not compared.
    load(adapted(model, getkey, Shifted), file)
    refused(adapted(model, getkey, Shifted), file)
    with net.disabled():
        net.save_adapters(file)
    assert all(known(file).values())
    # A base that was trained in the adapter is another one, and is not known.
    save_with_trained_base(net, file)
    assert known(file) == {"encoder/0": True, "encoder/1": True, "head": False}
    # Where the adapter left its base alone, the trained base counts.
    net = Net(model).freeze().lora(2, wrapper=ToyLinear, target="head")
    save_with_trained_base(net, file)
    refused(model, file, "other values")
    load(net.module, file, strict="values")


def save_with_trained_base(net, file):
    net.mask("head/base/weight").unfreeze()
    trainable, _ = net.partition()
    net.update(jax.tree.map(lambda a: a + 1, trainable))
    with pytest.warns(JnoLoraWarning, match="other arrays train"):
        net.save_adapters(file)


def test_a_set_has_no_layers_unless_its_model_is_given(model, getkey, file):
    adapters = extract_adapters(adapted(model, getkey, Shifted))
    save_adapters(adapters, file)
    assert not any(known(file).values())
    save_adapters(adapters, file, base_values=model)
    load(model, file, strict="values")
    save_adapters(read_adapters(file, wrappers=CLASSES), file, base_values=changed(model))
    refused(model, file, "head: the layer has other values")
    net = Net(model).freeze().lora(2, wrapper=ToyLinear)
    net.save_adapters(file, base_values=changed(model))
    with pytest.warns(JnoLoraWarning, match=":\n  - head\n"):
        load(model, file)
    with pytest.raises(SelectionError, match="`base_values` of save_adapters takes a model"):
        save_adapters(adapters, file, base_values=net)
    with pytest.raises(SelectionError, match=r"The adapters to save do not fit(.|\n)*no layer"):
        save_adapters(adapters, file, base_values={"elsewhere": model})


def test_arrays_of_all_kinds_are_hashed(getkey, file):
    save_adapters(apply_lora([odd()], 1, key=getkey(), wrapper=ToyOdd), file)
    assert known(file) == {"0": True}
    load([odd()], file, strict="values")  # with another function in a static field
    changes = {"key": jax.random.key(1), "ids": np.arange(1, 4), "weight": -1.0}
    changes |= {"flags": jnp.asarray([True, True]), "scale": jnp.asarray(3.0)}
    for name, change in changes.items():
        refused([odd(**{name: change})], file, "0: the layer has other values")
    # NumPy's double precision is hashed as JAX holds it.
    layer = eqx.nn.Linear(3, 2, key=getkey())
    values = np.asarray(layer.weight, np.float64) + 1e-12
    doubles = eqx.tree_at(lambda it: it.weight, layer, np.asfortranarray(values))
    save_adapters(apply_lora([doubles], 1, key=getkey(), wrapper=ToyLinear), file)
    load([doubles], file, strict="values")
    load([layer], file, strict="values")
    doubles.weight[0, 0] += 1  # NumPy's arrays can change: their hash is not remembered
    refused([doubles], file, "other values")


def test_layers_without_values_or_of_another_form_are_left_out(model, getkey, file):
    trained = adapted(model, getkey)
    save_adapters(trained, file)
    eqx.filter_eval_shape(lambda m: load(m, file), model)
    refused(eqx.filter_eval_shape(lambda m: m, model), file)
    head = jax.tree.map(jnp.copy, trained.head.base)
    donated = eqx.tree_at(lambda m: m.head.base, trained, head)
    head.weight.delete()
    save_adapters(donated, file)
    assert known(file) == {"encoder/0": True, "encoder/1": True, "head": False}
    with_bias, without = (eqx.nn.Linear(3, 2, bias, key=getkey()) for bias in (True, False))
    for layer, other in ((with_bias, without), (without, with_bias)):
        assert not base_values.hashes({"0": layer}, {"0": LayerForm.of(other, 0)})


def test_a_sharded_layer_has_the_hash_of_the_whole(file, getkey):
    layer = eqx.nn.Linear(16, 8, key=getkey())
    save_adapters(apply_lora([layer], 1, key=getkey(), wrapper=ToyLinear), file)
    mesh = Mesh(np.array(jax.devices()).reshape(4, 2), ("a", "b"))
    for spec in (("b", "a"), (None, "a"), (None, None)):
        weight = jax.device_put(layer.weight, NamedSharding(mesh, PartitionSpec(*spec)))
        sharded = eqx.tree_at(lambda it: it.weight, layer, weight)
        load([sharded], file, strict="values")
        assert weight._npy_value is None  # no copy of it stays


def test_an_array_is_hashed_once(model, getkey, file, monkeypatch):
    counted, compute = [], base_values._computed_digest
    monkeypatch.setattr(
        base_values, "_computed_digest", lambda array: (counted.append(1), compute(array))[1]
    )
    trained = adapted(jax.tree.map(lambda a: a + 1 if eqx.is_array(a) else a, model), getkey)
    for _ in range(3):
        save_adapters(trained, file)
    assert len(counted) == 6
    remembered = len(base_values._digests)
    del trained
    gc.collect()
    assert len(base_values._digests) <= remembered - 6
