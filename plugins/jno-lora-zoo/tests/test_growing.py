"""Grown layers: old entries as they were, new entries trained, one larger layer after merging."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from tests.core.toys import ToyLinear
from zoo_cases import check_kind, perturb

from jno.lora import (
    CheckpointError,
    Net,
    SelectionError,
    WrapperError,
    load_adapters,
    merge_lora,
    save_adapters,
    unwrap_lora,
)
from jno_lora_testing import WrapperCase
from jno_lora_zoo import GrownConv, GrownEmbedding, GrownLinear, grow, load_grown

KEY = jr.key(0)


class Tied(eqx.Module):
    """A model of tokens whose head is the table, read as `.weight`."""

    table: eqx.nn.Embedding
    up: eqx.nn.Linear
    down: eqx.nn.Linear

    def __init__(self, key):
        k = jr.split(key, 3)
        self.table = eqx.nn.Embedding(7, 4, key=k[0])
        self.up, self.down = (eqx.nn.Linear(*s, key=k[i]) for i, s in ((1, (4, 5)), (2, (5, 4))))

    def __call__(self, token):
        h = self.table(token)
        return self.table.weight @ (h + self.down(jnp.tanh(self.up(h))))


@pytest.mark.parametrize(
    ("cls", "base", "x", "columns"),
    [
        (GrownLinear, lambda key: eqx.nn.Linear(5, 4, key=key), lambda k: jr.normal(k, (5,)), 1),
        (GrownConv, lambda k: eqx.nn.Conv1d(3, 4, 2, key=k), lambda k: jr.normal(k, (3, 5)), 2),
        (GrownEmbedding, lambda k: eqx.nn.Embedding(5, 4, key=k), lambda k: jnp.array(4), 2),
    ],
)
def test_the_kit_of_the_kind(cls, base, x, columns):
    options = {"rows": 2, "columns": columns}
    check_kind(WrapperCase(cls, base=base, inputs=lambda k: (x(k),), rank=2, options=options))


def test_a_linear_layer_keeps_old_outputs_and_merges_into_a_larger_layer():
    old = eqx.nn.Linear(3, 4, key=KEY)
    model = grow({"head": old}, "head", outputs=2, inputs=1)
    x = jr.normal(KEY, (4,))
    y = model["head"](x)
    assert jnp.array_equal(y[:4], old(x[:3])) and not jnp.any(y[4:])
    assert (model["head"].in_features, model["head"].out_features) == (4, 6)
    trained = perturb(model)["head"]
    layer = merge_lora(trained)
    assert type(layer) is eqx.nn.Linear and (layer.in_features, layer.out_features) == (4, 6)
    W, b = np.zeros((6, 4)), np.zeros(6)
    W[:4, :3], b[:4] = old.weight, old.bias
    W[4:], W[:4, 3:], b[4:] = trained.new_rows, trained.new_columns, trained.new_bias
    np.testing.assert_array_equal(np.float64(layer.weight), W)
    np.testing.assert_array_equal(np.float64(layer.bias), b)
    np.testing.assert_allclose(trained(x), W @ np.float64(x) + b, rtol=1e-5, atol=1e-6)
    assert jnp.array_equal(merge_lora(grow([old], "0", inputs=1))[0].bias, old.bias)
    plain = unwrap_lora(trained)
    assert jnp.array_equal(plain(x)[:4], old(x[:3]))


def test_channels_of_a_convolution_copy_old_channels_and_a_file_keeps_them(tmp_path):
    old = eqx.nn.Conv2d(2, 3, 2, key=KEY)
    x = jr.normal(KEY, (3, 4, 4))
    conv = grow([old], "0", outputs=2, inputs=1, start=(2, 0))[0]
    y = conv(x)
    np.testing.assert_allclose(y[:3], old(x[:2]), atol=1e-6)
    np.testing.assert_allclose(y[3:], old(x[:2])[jnp.array([2, 0])], atol=1e-6)
    layer = merge_lora(perturb(conv))
    assert layer.weight.shape == (5, 3, 2, 2) and layer.bias.shape == (5, 1, 1)
    assert (layer.in_channels, layer.out_channels) == (3, 5)
    np.testing.assert_allclose(perturb(conv)(x), layer(x), atol=1e-5)
    assert jnp.array_equal(layer.weight[:3, :2], old.weight)
    save_adapters([conv], tmp_path / "a.safetensors")
    assert jnp.array_equal(load_grown([old], tmp_path / "a.safetensors")[0](x), y)


def test_stacks_grow_slice_by_slice():
    stack = eqx.filter_vmap(lambda key: eqx.nn.Linear(3, 4, key=key))(jr.split(KEY, 2))
    grown = grow([stack], "0", outputs=40, inputs=1, start="random", key=KEY)[0]
    rows, last = grown.new_rows[..., :3], grown.new_rows[..., -1]
    assert rows.shape == (2, 40, 3) and not jnp.any(last) and jnp.all(rows[0] != rows[1])
    assert abs(rows.mean()) < 0.1 and abs(rows.std() - stack.weight.std()) < 0.1
    layer = merge_lora(grown)
    assert layer.weight.shape == (2, 44, 4) and layer.bias.shape == (2, 44)
    assert jnp.array_equal(layer.weight[:, :4, :3], stack.weight)


def test_a_token_more_in_a_tied_model_beside_lora(tmp_path):
    model = Tied(KEY)
    grown = grow(model, "table", inputs=2)
    np.testing.assert_allclose(grown(3)[:7], model(3), rtol=1e-5)
    # Both uses see the new rows, which start as the mean.
    mean = np.mean(np.float64(model.table.weight), axis=0)
    np.testing.assert_allclose(grown.table(8), mean, atol=1e-6)
    assert grown(8).shape == (9,)
    net = Net(grown).freeze().lora(rank=2, target="up|down").mask("new_").unfreeze()
    names = {path.split("/")[-1] for path in _trained(net)}
    assert names == {"new_rows", "new_columns", "lora_A", "lora_B"}

    def loss(trainable, frozen):
        return -jax.nn.log_softmax(eqx.combine(trainable, frozen)(8))[7]

    trainable, frozen = net.partition()
    gradients = jax.jit(jax.grad(loss))(trainable, frozen)
    assert jnp.all(jnp.any(gradients.table.new_columns != 0, axis=0))
    net.update(jax.tree.map(lambda a, g: a - g, trainable, gradients))
    assert jnp.array_equal(merge_lora(net.module).table.weight[:7], model.table.weight)

    # The file holds the new rows and the factors, and the small model takes it.
    net.save_adapters(tmp_path / "a.safetensors")
    loaded = load_grown(model, tmp_path / "a.safetensors")
    assert jnp.array_equal(loaded(8), net.module(8))
    file = tmp_path / "a.safetensors"
    again = load_adapters(grown, file, strict="values", wrappers=GrownEmbedding)
    assert jnp.array_equal(again(8), net.module(8))
    assert jnp.array_equal(load_grown(model, file, strict="values")(8), net.module(8))
    with pytest.raises(CheckpointError, match=r"table.*other values"):
        load_grown(Tied(jr.key(1)), file, strict="values")
    with pytest.raises(
        CheckpointError, match=r"wrappers=\[GrownEmbedding\]\), or call its package's own loader"
    ):
        load_adapters(model, file)


def test_a_class_that_no_plugin_provides_is_passed_to_load_grown(tmp_path):
    model = {"head": eqx.nn.Linear(3, 4, key=KEY), "tail": eqx.nn.Linear(4, 2, key=KEY)}
    net = Net(grow(model, "head", outputs=1)).lora(rank=1, wrapper=ToyLinear, target="tail")
    net.save_adapters(tmp_path / "a.safetensors")
    loaded = load_grown(model, tmp_path / "a.safetensors", wrappers=ToyLinear)
    assert eqx.tree_equal(loaded, net.module)


def _trained(net):
    leaves = jax.tree_util.tree_leaves_with_path(net.trainable)
    return [jax.tree_util.keystr(k, simple=True, separator="/") for k, on in leaves if on]


LINEAR = eqx.nn.Linear(4, 4, key=KEY)
MODEL = {
    "linear": LINEAR,
    "conv": eqx.nn.Conv1d(4, 4, 1, groups=2, key=KEY),
    "norm": eqx.nn.LayerNorm(4),
    "scalar": eqx.nn.Linear("scalar", 2, key=KEY),
    "weight_norm": eqx.nn.WeightNorm(eqx.nn.Linear(3, 3, key=KEY)),
    "attention": eqx.nn.MultiheadAttention(2, 8, key=KEY),
    "table": eqx.nn.Embedding(3, 4, key=KEY),
}


@pytest.mark.parametrize(
    ("path", "asked", "words"),
    [
        ("linaer", {"outputs": 1}, r"(?s)no layer at 'linaer'.*- linear"),
        ("conv", {"outputs": 1}, "in 2 groups, expected 1"),
        ("norm", {"outputs": 1}, "LayerNorm at 'norm' cannot grow"),
        ("scalar", {"outputs": 1}, "size is 'scalar'"),
        ("weight_norm/layer", {"outputs": 1}, "norm at 'weight_norm' rewrites it"),
        ("attention/query_proj", {"outputs": 1}, "The outputs of .*query_proj.* into heads"),
        ("attention/output_proj", {"inputs": 1}, "The inputs of .*output_proj.* into heads"),
        ("linear", {"inputs": 1, "start": "mean"}, "how new outputs start, and there are none"),
        ("table", {"outputs": 1, "start": "mean"}, "how new tokens start.*`inputs=`"),
        ("linear", {"outputs": -1}, "must be at least 0, but are .*-1"),
        ("linear", {"outputs": 0}, "give `outputs=` or `inputs=`"),
        ("linear", {"outputs": 1, "start": "ones"}, "one of .*'random'"),
        ("linear", {"outputs": 1, "start": "random"}, "needs a `key=`"),
        ("linear", {"outputs": 1, "start": (4,)}, "1 numbers of old rows, at least 0 and below 4"),
        ("linear", {"outputs": 1, "start": (0, 1)}, "must hold 1 numbers"),
    ],
)
def test_a_layer_that_cannot_grow_says_why(path, asked, words, unchecked):
    with pytest.raises(SelectionError, match=words):
        grow(MODEL, path, **asked)


def test_a_layer_grows_once_and_not_where_others_read_its_array():
    assert grow(MODEL, "attention/output_proj", outputs=1)
    numbers = grow(MODEL, "linear", outputs=np.int64(1), start=np.array([2]))
    assert eqx.tree_equal(numbers, grow(MODEL, "linear", outputs=1, start=(2,)))
    with pytest.raises(SelectionError, match=r"(?s)one array is its weight.*again/weight"):
        grow({**MODEL, "again": LINEAR}, "linear", outputs=1)
    with pytest.raises(SelectionError, match="carries an adapter"):
        grow(grow(MODEL, "linear", outputs=1), "linear", inputs=1)
    with pytest.raises(WrapperError, match=r"rows=0, columns=0: `jno_lora_zoo.grow` makes"):
        Net(LINEAR).lora(rank=1, wrapper=GrownLinear)


def test_shapes_are_enough():
    grown = eqx.filter_eval_shape(lambda: grow(Tied(KEY), "table", inputs=2))
    assert grown.table.new_columns.shape == (4, 2)
