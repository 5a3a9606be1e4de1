"""Which layers are claimed, and how the adapters are found and put in place."""

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest

from jno.lora import (
    CheckpointError,
    JnoLoraWarning,
    LoRALinear,
    Net,
    SelectionError,
    apply_lora,
    extract_adapters,
    plan_lora,
    refresh,
    registered,
    swap_adapters,
)
from jno_lora_attention import IA3Attention, LoRAAttention, PrefixAttention

ADAPTERS = [LoRAAttention, IA3Attention, PrefixAttention]
every_adapter = pytest.mark.parametrize("cls", ADAPTERS, ids=lambda cls: cls.__name__)


class Encoder(eqx.Module):
    attention: eqx.nn.MultiheadAttention
    mlp: eqx.nn.MLP

    def __init__(self, key):
        one, two = jax.random.split(key)
        self.attention = eqx.nn.MultiheadAttention(2, 8, key=one)
        self.mlp = eqx.nn.MLP(8, 8, 16, 1, key=two)

    def __call__(self, x):
        return jax.vmap(self.mlp)(x + self.attention(x, x, x))


class Scaled(eqx.nn.Linear):
    def __call__(self, x, *, key=None):
        return 2 * super().__call__(x, key=key)


@every_adapter
def test_claims_attention_over_plain_linear_layers_only(cls, getkey):
    small = eqx.nn.MultiheadAttention(2, 8, use_key_bias=True, key=getkey())

    def replaced(where, value):
        return eqx.tree_at(where, small, value)

    key = getkey()
    shared = eqx.nn.Shared(small, lambda m: m.key_proj.weight, lambda m: m.query_proj.weight).pytree
    refused = [
        replaced(lambda m: m.query_proj, LoRALinear(small.query_proj, 2, 1.0, key=key)),
        replaced(lambda m: m.output_proj, Scaled(8, 8, key=key)),
        replaced(lambda m: m.value_proj, None),
        replaced(lambda m: m.key_proj.weight, jnp.ones((8, 8), jnp.complex64)),
        replaced(lambda m: m.key_proj.weight, jnp.ones((8, 8), int)),
        replaced(lambda m: m.key_proj.weight, jnp.ones((3, 8, 8))),
        replaced(lambda m: m.key_proj.bias, jnp.ones(8, int)),
        shared,
        apply_lora(small, 2, 1.0, key=key, wrapper=cls),
        eqx.nn.Linear(8, 8, key=key),
        Encoder(key),
        *(jnp.ones(3), key, None, 3, "x", jnp.ones, object()),
    ]
    assert [leaf for leaf in refused if cls.applies_to(leaf)] == []
    assert cls.applies_to(small) and cls.stack_ndim(small) == 0


def test_found_by_name_through_the_registry(getkey):
    refresh()
    record = next(r for r in registered() if r.distribution == "jno-lora-attention")
    assert record.status == "loaded" and [w.cls for w in record.wrappers] == ADAPTERS
    for name, cls in (
        ("lora-attention", LoRAAttention),
        ("ia3-attention", IA3Attention),
        ("prefix-attention", PrefixAttention),
        # Neither the default nor "auto" takes the unit.
        (None, eqx.nn.MultiheadAttention),
        ("auto", eqx.nn.MultiheadAttention),
    ):
        net = Net(Encoder(getkey())).lora(rank=2, wrapper=name)
        assert type(net.module.attention) is cls
        assert cls is eqx.nn.MultiheadAttention or (cls.about.paper and cls.about.formula)


def test_the_layers_inside_a_wrapped_unit_are_hidden(getkey):
    net = Net(Encoder(getkey())).lora(rank=2, wrapper=["lora-attention", "LoRALinear"])
    paths = {row.path for row in plan_lora(Encoder(getkey()), 2, wrapper=LoRALinear).wrapped}
    assert "attention/query_proj" in paths
    assert type(net.module.attention) is LoRAAttention
    assert type(net.module.attention.base.key_proj) is eqx.nn.Linear
    assert type(net.module.mlp.layers[0]) is LoRALinear
    with pytest.raises(SelectionError):
        net.lora(rank=2, wrapper=LoRALinear, target="attention")
    # And a unit that holds an adapter is not claimed.
    net = Net(Encoder(getkey())).lora(rank=2, wrapper=LoRALinear, target="query_proj")
    with pytest.raises(SelectionError):
        net.lora(rank=2, wrapper=LoRAAttention)


@pytest.fixture(scope="module")
def nets():
    """One block with adapters inside of it, and the same with one around it."""
    block = eqx.nn.MultiheadAttention(2, 4, key=jax.random.key(0))
    model = {"block": block}
    within = Net(model).freeze().lora(rank=2, target="query")
    around = Net(model).freeze().lora(rank=2, wrapper=PrefixAttention)
    return within, around


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
        # A set takes the place of whatever the model carries.
        swapped = swap_adapters(before, extract_adapters(other.module))
        assert eqx.tree_equal(swapped, other.module)
