"""Files onto models and nets that fit, or do not: everything is told, and nothing is lost."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jno.lora import (
    CheckpointError,
    JnoLoraWarning,
    Net,
    Registry,
    SelectionError,
    apply_lora,
    load_adapters,
    partial_lora_trainable_filter,
    read_adapters,
    save_adapters,
)

from ..toys import Block, Model, ToyBlock, ToyLinear, ToyScale, same, selected
from ._tools import OWN, adapted


def test_after_loading_the_adapters_train_and_nothing_else_changed(model, file):
    Net(model).freeze().lora(2, wrapper=ToyScale, target="head").save_adapters(file)
    net = Net(model).freeze().lora(2, wrapper=ToyLinear, target="head|encoder/1").freeze()
    net.mask("embedding|head/base").unfreeze()
    assert net.load_adapters(file, wrappers=OWN) is net
    assert selected(net.trainable) == {"head/gain", "embedding/weight"}
    assert jax.tree.structure(net.trainable) == jax.tree.structure(net.module)
    fresh = load_adapters(Net(model), file, wrappers=OWN)
    assert isinstance(fresh, Net)
    assert same(fresh.trainable, partial_lora_trainable_filter(fresh.module))
    for save in (Net.save_adapters, save_adapters):
        with pytest.warns(JnoLoraWarning, match=r"6 other arrays train too(.|\n)*embedding/weight"):
            save(fresh, file)
    assert list(read_adapters(file, wrappers=OWN)) == ["head"]


def test_a_net_uses_its_own_registry(model, file):
    mine = Registry(discover=False)
    mine.register(ToyLinear)
    Net(model, registry=mine).freeze().lora(2, wrapper="ToyLinear").save_adapters(file)
    again = Net(model, registry=mine).load_adapters(file)
    assert isinstance(again.module.head, ToyLinear)
    with pytest.raises(CheckpointError, match="ToyLinear"):
        Net(model).load_adapters(file)


@pytest.mark.parametrize("saved", ["in the block", "the block"])
def test_an_adapter_of_a_part_and_one_of_the_whole_do_not_displace_each_other(saved, getkey, file):
    model = {"block": Block(2, key=getkey()), "head": eqx.nn.Linear(2, 2, key=getkey())}
    wrappers = {"in the block": (ToyLinear, "up|head"), "the block": ([ToyBlock, ToyLinear], "")}
    wrapper, target = wrappers.pop(saved)
    save_adapters(apply_lora(model, 1, key=getkey(), wrapper=wrapper, target=target), file)
    ((other, target),) = wrappers.values()
    net = Net(model).freeze().lora(1, wrapper=other, target=target)
    before = net.module
    with pytest.raises(CheckpointError, match="block"):
        net.load_adapters(file, wrappers=[ToyBlock, ToyLinear])
    assert net.module is before
    with pytest.warns(JnoLoraWarning, match="1 of 2 adapters(.|\n)*block"):
        net.load_adapters(file, wrappers=[ToyBlock, ToyLinear], strict=False)
    assert same(net.module["block"], before["block"])


def test_values_from_before_loading_do_not_overwrite_what_was_loaded(model, getkey, file):
    save_adapters(adapted(model, getkey), file)
    net = Net(model).freeze().lora(2, 3.0, wrapper=ToyLinear)
    old, _ = net.partition()
    loaded = net.load_adapters(file, wrappers=OWN).module
    with pytest.raises(SelectionError, match=r"exchanged after the last `net.partition\(\)`"):
        net.update(old)
    assert net.module is loaded
    assert same(net.update(net.partition()[0]).module, loaded)


def test_every_mismatch_is_listed_and_nothing_changes(model, getkey, file):
    save_adapters(adapted(model, getkey), file)
    wider = Model(getkey(), size=4)
    wider = eqx.tree_at(lambda m: m.encoder, wider, wider.encoder[:1])
    with pytest.raises(CheckpointError) as caught:
        load_adapters(wider, file, wrappers=OWN)
    message = str(caught.value)
    assert str(file) in message
    assert "encoder/0/weight: the adapter was made for float32[3, 3], the Linear has" in message
    assert "encoder/0/bias" in message and "head/weight" in message
    assert "encoder/1: the model has no layer there (the nearest is 'encoder/0')" in message


def test_a_partial_load_takes_the_fitting_adapters_and_lists_the_misfits(model, getkey, file):
    trained = adapted(model, getkey)
    save_adapters(trained, file)
    other = eqx.tree_at(lambda m: m.head, model, eqx.nn.Linear(3, 5, key=getkey()))
    with pytest.warns(JnoLoraWarning, match=r"2 of 3 adapters .* were loaded") as caught:
        loaded = load_adapters(other, file, strict=False, wrappers=OWN)
    assert "head/weight" in str(caught[0].message)
    assert same(loaded.encoder, trained.encoder) and same(loaded.head, other.head)


def test_nan_and_infinity_are_loaded_and_told(model, getkey, file):
    trained = adapted(model, getkey)
    bad = jnp.asarray([[jnp.nan, 1.0], [jnp.inf, 1.0]])
    trained = eqx.tree_at(lambda m: m.head.lora_B, trained, bad)
    save_adapters(trained, file)
    with pytest.warns(JnoLoraWarning, match="head:lora_B: 2 of 4 numbers") as caught:
        loaded = load_adapters(model, file, wrappers=OWN)
    assert len(caught) == 1
    assert np.array_equal(loaded.head.lora_B, bad, equal_nan=True)
