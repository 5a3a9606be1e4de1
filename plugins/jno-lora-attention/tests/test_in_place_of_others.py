"""Adapters of a block and adapters of the layers in it, one in the place of the other."""

import equinox as eqx
import jax
import pytest

from jno.lora import CheckpointError, JnoLoraWarning, Net, extract_adapters, swap_adapters
from jno_lora_attention import PrefixAttention


@pytest.fixture(scope="module")
def nets():
    """One block with adapters inside of it, and the same with one around it."""
    block = eqx.nn.MultiheadAttention(2, 4, key=jax.random.key(0))
    model = {"block": block}
    within = Net(model).freeze().lora(rank=2, target="query")
    around = Net(model).freeze().lora(rank=2, wrapper=PrefixAttention)
    return within, around


def test_a_set_takes_the_place_of_whatever_the_model_carries(nets):
    for carrier, other in (nets, nets[::-1]):
        swapped = swap_adapters(carrier.module, extract_adapters(other.module))
        assert eqx.tree_equal(swapped, other.module)


def test_loading_neither_loses_what_was_there_nor_what_was_loaded(nets, tmp_path):
    for carrier, other, words in (
        (nets[0], nets[1], "around the LoRALinear at 'block/query_proj'"),
        (nets[1], nets[0], "inside the PrefixAttention at 'block'"),
    ):
        other.save_adapters(tmp_path / "file")
        before = carrier.module
        with pytest.raises(CheckpointError, match=words):
            carrier.load_adapters(tmp_path / "file")
        with pytest.warns(JnoLoraWarning, match=words):
            carrier.load_adapters(tmp_path / "file", strict=False)
        assert eqx.tree_equal(carrier.module, before)
