"""Options that change the shapes of arrays come back by `options_of`."""

import json

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jno.lora import (
    CheckpointError,
    apply_lora,
    extract_adapters,
    load_adapters,
    merge_lora,
    read_adapters,
    save_adapters,
    swap_adapters,
)
from jno.lora.testing import WrapperCase, run_checks

from .asking import run
from .broken_adapters import float_of
from .toys import ToyScale, adapters_in, same, shaken


class Blocks(ToyScale):
    """A gain for each of `blocks` equal parts of the output, kept in a static field as well."""

    blocks: int = eqx.field(static=True)

    @classmethod
    def applies_to(cls, leaf) -> bool:
        exact = type(leaf) is eqx.nn.Linear and eqx.is_inexact_array(leaf.weight)
        return exact and leaf.weight.ndim >= 2

    @classmethod
    def stack_ndim(cls, leaf) -> int:
        return leaf.weight.ndim - 2

    def __init__(self, base, rank, alpha, *, key, blocks=1):
        self.base, self.rank, self.alpha, self.blocks = base, rank, alpha, blocks
        dtype = float_of(base.weight).dtype
        self.gain, self.constant = jnp.zeros(blocks, dtype), jnp.zeros((), dtype)

    def __call__(self, x):
        return self.merge()(x)

    def merge(self):
        W = float_of(self.base.weight)
        gain = jnp.repeat(self.gain + self.constant, W.shape[0] // self.blocks)
        weight = (W * (1 + gain[:, None])).astype(self.base.weight.dtype)
        return eqx.tree_at(lambda m: m.weight, self.base, weight)

    @classmethod
    def options_of(cls, state):
        return {"blocks": state["gain"].shape[0]}


class Forgets(Blocks):
    @classmethod
    def options_of(cls, state):
        return {}


OPTIONS = {"blocks": 3}


@pytest.fixture
def layers(getkey):
    return [
        eqx.nn.Linear(4, 6, key=getkey()),
        eqx.filter_vmap(lambda key: eqx.nn.Linear(4, 6, key=key))(jax.random.split(getkey(), 2)),
    ]


def adapted(layers, getkey, cls=Blocks):
    return shaken(apply_lora(layers, 2, key=getkey(), wrappers=cls, options=OPTIONS))


def test_a_file_brings_the_option_back_around_one_layer_and_a_stack(layers, getkey, tmp_path):
    model = adapted(layers, getkey)
    save_adapters(model, tmp_path / "a.safetensors")
    loaded = load_adapters(layers, tmp_path / "a.safetensors", wrappers=Blocks)
    assert same(loaded, model)
    assert [adapter.blocks for adapter in adapters_in(loaded).values()] == [3, 3]
    (found, _) = json.loads(run("inspect", str(tmp_path / "a.safetensors"), "--json"))["adapters"]
    assert found["arrays"]["gain"]["shape"] == [3]


def test_sets_are_read_stacked_and_swapped(layers, getkey, tmp_path):
    model = adapted(layers, getkey)
    other = shaken(model)
    save_adapters(model, tmp_path / "a.safetensors")
    read = read_adapters(tmp_path / "a.safetensors", wrappers=Blocks)
    assert same(swap_adapters(layers, read), model)
    both = type(read).stack([read, extract_adapters(other)]) if hasattr(read, "stack") else read
    assert same(swap_adapters(layers, extract_adapters(other)), other)
    assert both is not None
    x = jnp.ones(4)
    np.testing.assert_allclose(merge_lora(model)[0](x), model[0](x), rtol=1e-6)


def test_without_it_the_file_says_which_shape_was_expected(layers, getkey, tmp_path):
    layer = layers[0]
    made = Forgets(layer, 2, 1.0, key=getkey(), **OPTIONS)
    save_adapters(adapted([layer], getkey), tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match="gain"):
        load_adapters([layer], tmp_path / "a.safetensors", wrappers=type("Blocks", (Forgets,), {}))
    assert made.blocks == 3


def test_the_kit_passes_with_such_an_option():
    case = WrapperCase(
        Blocks,
        base=lambda key: eqx.nn.Linear(4, 6, key=key),
        inputs=lambda key: (jax.random.normal(key, (4,)),),
        options=OPTIONS,
        parameters=4,
    )
    assert [f"{result.error}" for result in run_checks(case) if result.error] == []
