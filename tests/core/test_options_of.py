"""Options that change the shapes of arrays come back by `options_of`."""

import json

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest

from jno.lora import (
    CheckpointError,
    WrapperError,
    apply_lora,
    extract_adapters,
    load_adapters,
    read_adapters,
    save_adapters,
    swap_adapters,
)

from .asking import run
from .good_adapter import float_of
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


class Renames(Blocks):
    """Restores the blocks, and forgets its note."""

    note: str = eqx.field(static=True)

    def __init__(self, base, rank, alpha, *, key, blocks=1, note="other"):
        Blocks.__init__(self, base, rank, alpha, key=key, blocks=blocks)
        self.note = note


OPTIONS = {"blocks": 3}


@pytest.fixture
def layers(getkey):
    return [
        eqx.nn.Linear(4, 6, key=getkey()),
        eqx.filter_vmap(lambda key: eqx.nn.Linear(4, 6, key=key))(jax.random.split(getkey(), 2)),
    ]


def adapted(layers, getkey, cls=Blocks):
    return shaken(apply_lora(layers, 2, key=getkey(), wrapper=cls, options=OPTIONS))


def test_a_file_brings_the_option_back_around_one_layer_and_a_stack(layers, getkey, tmp_path):
    model = adapted(layers, getkey)
    save_adapters(model, tmp_path / "a.safetensors")
    loaded = load_adapters(layers, tmp_path / "a.safetensors", wrappers=Blocks)
    assert same(loaded, model)
    assert [adapter.blocks for adapter in adapters_in(loaded).values()] == [3, 3]
    (found, _) = json.loads(run("inspect", str(tmp_path / "a.safetensors"), "--json"))["adapters"]
    assert found["arrays"]["gain"]["shape"] == [3]


def test_sets_are_read_and_swapped(layers, getkey, tmp_path):
    model = adapted(layers, getkey)
    save_adapters(model, tmp_path / "a.safetensors")
    read = read_adapters(tmp_path / "a.safetensors", wrappers=Blocks)
    assert same(swap_adapters(layers, read), model)


def test_without_it_an_option_that_is_kept_in_a_static_field_cannot_be_saved(layers, getkey):
    options = {**OPTIONS, "note": "mine"}
    model = apply_lora(layers, 2, key=getkey(), wrapper=Renames, options=options)
    with pytest.raises(WrapperError, match="restore it by `options_of` or `from_state`"):
        extract_adapters(model)


def test_without_it_a_file_cannot_be_loaded_and_says_which_shape_was_expected(
    layers, getkey, tmp_path
):
    save_adapters(adapted(layers, getkey), tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match=r"gain: expected shape \(1,\), got \(3,\)"):
        load_adapters(layers, tmp_path / "a.safetensors", wrappers=type("Blocks", (Forgets,), {}))
