"""Files that do not fit the model: everything is told, and nothing changes."""

import warnings

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import pytest

from jno.lora import (
    CheckpointError,
    JnoLoraWarning,
    Net,
    load_adapters,
    save_adapters,
)

from ..toys import Model, ToyLinear, same
from ._tools import OWN, adapted


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


def test_a_state_of_another_form_is_listed_too(model, getkey, file):
    save_adapters(adapted(model, getkey), file)

    class Grown(ToyLinear):
        def __init__(self, base, rank, alpha, *, key):
            ToyLinear.__init__(self, base, rank + 1, alpha, key=key)

    Grown.__name__ = "ToyLinear"
    with pytest.raises(CheckpointError) as caught:
        load_adapters(model, file, wrappers=[Grown])
    for path in ("encoder/0", "encoder/1"):
        assert f"{path}: could not restore the ToyLinear" in str(caught.value)
    assert "expected shape (3, 3), got (2, 3)" in str(caught.value)


def test_a_partial_load_takes_the_fitting_adapters_and_lists_the_misfits(model, getkey, file):
    trained = adapted(model, getkey)
    save_adapters(trained, file)
    other = eqx.tree_at(lambda m: m.head, model, eqx.nn.Linear(3, 5, key=getkey()))
    with pytest.warns(JnoLoraWarning, match=r"2 of 3 adapters .* were loaded") as caught:
        loaded = load_adapters(other, file, strict=False, wrappers=OWN)
    assert "head/weight" in str(caught[0].message)
    assert same(loaded.encoder, trained.encoder) and same(loaded.head, other.head)
    # A warning that is turned into an error changes nothing.
    net = Net(other)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(JnoLoraWarning):
            net.load_adapters(file, strict=False, wrappers=OWN)
    assert net.module is other


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
