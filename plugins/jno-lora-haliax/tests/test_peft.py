"""Files of PEFT: named axes are flattened in the order in which a Haliax layer declares them."""

import equinox as eqx
import haliax as hax
import haliax.nn as hnn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from haliax.nn.scan import Stacked
from safetensors.numpy import load_file
from zoo_cases import perturb

from jno.lora import Net, PeftFormatError
from jno_lora_peft import load_peft, save_peft

IN, HEADS, SIZE, BATCH = hax.make_axes(embed=4, heads=2, size=3, batch=3)
VOCAB, LAYER = hax.make_axes(vocab=7, layer=3)
# From a layer of the stack to the names of a list of layers, and back.
NAMES = {r"^stack/stacked/(.*)\[(\d+)\]$": r"layers/\2/\1"}
PATHS = {r"^layers/(\d+)/(.*)": r"stack/stacked/\2[\1]"}


class Block(eqx.Module):
    up: hnn.Linear
    down: hnn.Linear

    @staticmethod
    def init(*, key):
        up, down = jax.random.split(key)
        up = hnn.Linear.init(IN, (HEADS, SIZE), key=up, out_first=False)
        return Block(up, hnn.Linear.init((HEADS, SIZE), IN, key=down, use_bias=False))

    def __call__(self, x):
        return x + self.down(hax.tanh(self.up(x)))


class Model(eqx.Module):
    embed: hnn.Embedding
    stack: Stacked
    head: hnn.Linear | None

    def __init__(self, has_head=True):
        keys = jax.random.split(jax.random.key(0), 3)
        self.embed = hnn.Embedding.init(VOCAB, IN, key=keys[0])
        self.stack = Stacked.init(LAYER, Block)(key=jax.random.split(keys[1], LAYER.size))
        self.head = hnn.Linear.init(IN, VOCAB, key=keys[2], use_bias=False) if has_head else None

    def __call__(self, ids):
        x = self.stack.fold(self.embed(ids))
        return self.embed.unembed(x) if self.head is None else self.head(x)


class Plain(eqx.Module):
    """The same model as a model of `eqx.nn`."""

    embed: eqx.nn.Embedding
    layers: list[dict[str, eqx.nn.Linear]]
    head: eqx.nn.Linear

    def __init__(self, model):
        self.embed = eqx.nn.Embedding(weight=model.embed.weight.array)
        self.layers = [
            {
                "up": linear(block.up.weight.rearrange((HEADS, SIZE, IN)), block.up.bias),
                "down": linear(block.down.weight.rearrange((IN, HEADS, SIZE))),
            }
            for block in model.stack.unstacked()
        ]
        self.head = linear(model.head.weight)

    def __call__(self, token):
        x = self.embed(token)
        for layer in self.layers:
            x = x + layer["down"](jnp.tanh(layer["up"](x)))
        return self.head(x)


def linear(weight, bias=None):
    rows = IN.size if weight.axes[0] == IN else 7 if weight.axes[0] == VOCAB else 6
    array = weight.array.reshape(rows, -1)
    layer = eqx.nn.Linear(*array.shape[::-1], use_bias=bias is not None, key=jax.random.key(0))
    layer = eqx.tree_at(lambda m: m.weight, layer, array)
    return layer if bias is None else eqx.tree_at(lambda m: m.bias, layer, bias.array.reshape(-1))


def adapted(model, **options):
    return perturb(Net(model).lora(rank=2, alpha=3.0, **options).module)


@pytest.mark.slow
@pytest.mark.parametrize("wrapper", ["lora", "dora", "pissa", "loha"])
def test_peft_gets_the_same_layers_as_from_a_model_of_equinox(wrapper, tmp_path):
    model, ids = Model(), hax.named(jnp.array([6, 0, 2]), BATCH)
    net = adapted(model, wrapper=wrapper)
    save_peft(net, tmp_path, rename=NAMES)
    loaded = load_peft(model, tmp_path, rename=PATHS)
    if wrapper != "pissa":  # PEFT's form of PiSSA is LoRA of twice the rank
        assert eqx.tree_equal(loaded, net)
    expected = net(ids).array
    assert float(jnp.abs(expected - model(ids).array).max()) > 0.1
    np.testing.assert_allclose(loaded(ids).array, expected, atol=1e-5)
    plain = load_peft(Plain(model), tmp_path)
    np.testing.assert_allclose(jax.vmap(plain)(ids.array), expected, atol=1e-5)
    if wrapper == "lora":
        shapes = {n: x.shape for n, x in load_file(tmp_path / "adapter_model.safetensors").items()}
        assert shapes["base_model.model.layers.2.up.lora_A.weight"] == (2, 4)
        assert shapes["base_model.model.layers.2.up.lora_B.weight"] == (6, 2)
        assert len(shapes) == 2 * (2 * LAYER.size + 1)


@pytest.mark.slow
def test_adapters_of_embeddings_and_of_stacks_of_embeddings(tmp_path):
    model, options = Model(), {"wrapper": "lora-embedding", "target": "embed"}
    net = adapted(model, **options)
    save_peft(net, tmp_path / "one")
    assert eqx.tree_equal(load_peft(model, tmp_path / "one"), net)
    plain, ids = load_peft(Plain(model), tmp_path / "one"), jnp.array([6, 0, 2])
    np.testing.assert_allclose(jax.vmap(plain)(ids), net(hax.named(ids, BATCH)).array, atol=1e-5)
    keys = jax.random.split(jax.random.key(0), LAYER.size)
    tables = {"embed": hax.vmap(hnn.Embedding.init, LAYER)(VOCAB, (HEADS, SIZE), key=keys)}
    net = adapted(tables, **options)
    save_peft(net, tmp_path / "stack", rename={r"^embed\[(\d)\]$": r"tables/\1"}, tied=False)
    back = {"rename": {r"^tables/(\d)$": r"embed[\1]"}, "tied": False}
    assert eqx.tree_equal(load_peft(tables, tmp_path / "stack", **back), net)


@pytest.mark.slow
def test_a_table_that_is_the_head_as_well_is_not_written_as_lookups_alone(tmp_path):
    model = Model(has_head=False)
    net = adapted(model, wrapper="lora-embedding", target="embed")
    with pytest.raises(PeftFormatError, match="may read the adapted table"):
        save_peft(net, tmp_path)
    names, paths = {"^embed$": "embed_tokens"}, {"^embed_tokens$": "embed"}
    save_peft(net, tmp_path / "tied", rename=names)
    assert eqx.tree_equal(load_peft(model, tmp_path / "tied", rename=paths), net)
    save_peft(net, tmp_path / "lookups", tied=False)
    with pytest.raises(PeftFormatError, match="tied=False"):
        load_peft(model, tmp_path / "lookups")
    assert eqx.tree_equal(load_peft(model, tmp_path / "lookups", tied=False), net)


@pytest.mark.slow
def test_convolutions_and_trained_biases_are_refused(tmp_path):
    conv = {"conv": hnn.Conv.init((SIZE,), IN, HEADS, 1, key=jax.random.key(0))}
    with pytest.raises(PeftFormatError, match="it is a Conv"):
        save_peft(adapted(conv), tmp_path)
    net = Net(Model()).freeze().lora(rank=2).mask("up/base/bias").unfreeze()
    with pytest.raises(PeftFormatError, match="trains too"):
        save_peft(net, tmp_path, rename=NAMES)
