"""Which layers are quantised, which are left alone and why, and the way back."""

import copy
import inspect
import pickle
import weakref

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jno.lora import LoRAWrapper, Net, SelectionError, apply_lora
from jno_lora_quantized import QuantizedArray, dequantize, plan_quantization, quantize


class LookAlike(eqx.Module):
    """Another library's layer: scaled, and with a second argument."""

    weight: jax.Array
    in_features: int = eqx.field(static=True)
    out_features: int = eqx.field(static=True)

    def __call__(self, x, shift=0.0):
        return 3 * jnp.dot(self.weight, x) + shift


class Model(eqx.Module):
    table: eqx.nn.Embedding
    layers: list
    norm: eqx.nn.LayerNorm
    head: eqx.nn.WeightNorm
    other: LookAlike
    kernel: jax.Array

    def __init__(self, key):
        k = jr.split(key, 6)
        self.table = eqx.nn.Embedding(11, 8, key=k[0])
        self.layers = [eqx.nn.Linear(8, 8, key=k[1]), eqx.nn.Linear(8, 8, key=k[2])]
        self.norm = eqx.nn.LayerNorm(8)
        self.head = eqx.nn.WeightNorm(eqx.nn.Linear(8, 4, key=k[3]))
        self.other = LookAlike(jr.normal(k[4], (8, 8)), 8, 8)
        self.kernel = jr.normal(k[5], (8, 8))

    def __call__(self, i):
        x = self.other(self.table(i), 1.0)
        for layer in self.layers:
            x = jnp.tanh(layer(x))
        return self.head(self.norm(self.kernel @ x))


@pytest.fixture
def model(getkey):
    return Model(getkey())


def scheme_of(weight):
    return weight.scheme.name if isinstance(weight, QuantizedArray) else None


@pytest.mark.parametrize("scheme", ["nf4", "int8"])
def test_there_and_back(model, scheme):
    coded = quantize(model, scheme)
    quantised = (coded.table, *coded.layers, coded.other)
    assert {scheme_of(layer.weight) for layer in quantised} == {scheme}
    assert coded.head == model.head and coded.kernel is model.kernel
    plain = dequantize(coded)
    assert jax.tree.structure(plain) == jax.tree.structure(model)
    np.testing.assert_allclose(coded(3), plain(3), rtol=1e-5, atol=1e-5)
    assert dequantize(model) == model
    mixed = quantize(quantize(model, scheme, target="layers/0|table"), "fp8")
    assert [scheme_of(layer.weight) for layer in mixed.layers] == [scheme, "fp8"]


def test_plan(model):
    plan = plan_quantization(quantize(model, "int8", target="table"), target="layers|table")
    reasons = {row.path: row.reason for row in plan.left_alone}
    assert [row.path for row in plan.quantized] == ["layers/0", "layers/1"]
    assert reasons == {
        "": "it is not a linear, convolution or embedding layer",
        "table": "its weight is quantised already",
        "norm": "it is not a linear, convolution or embedding layer",
        "head": "the WeightNorm rewrites the weight inside",
        "other": "the target does not match its path",
    }
    row = plan.quantized[0]
    assert (row.layer, row.scheme, row.before) == ("Linear", "nf4", 256)
    assert row.after == quantize(model).layers[0].weight.nbytes
    assert "2 of 7 layers are quantised" in str(plan)


def test_templates(model):
    template = eqx.filter_eval_shape(quantize, model)
    direct = quantize(eqx.filter_eval_shape(lambda m: m, model))
    coded = quantize(model)
    for shapes_only in (template, direct):
        assert jax.tree.structure(shapes_only) == jax.tree.structure(coded)
        shapes = [(x.shape, x.dtype) for x in jax.tree.leaves(eqx.filter(coded, eqx.is_array))]
        leaves = [x for x in jax.tree.leaves(shapes_only) if isinstance(x, jax.ShapeDtypeStruct)]
        assert [(x.shape, x.dtype) for x in leaves] == shapes
    assert plan_quantization(eqx.filter_eval_shape(lambda m: m, model)) == plan_quantization(model)
    back = dequantize(template)
    assert back.layers[0].weight.shape == (8, 8)


class Padded(eqx.nn.Conv1d):
    def __call__(self, x, *, key=None):
        return 2 * super().__call__(jnp.pad(x, ((0, 0), (1, 1))))


CONVOLUTIONS = {
    "Padded": (lambda k: Padded(2, 3, 3, key=k), (2, 5)),
    "Conv2d": (lambda k: eqx.nn.Conv2d(4, 6, (3, 2), 2, groups=2, key=k), (4, 8, 7)),
    "Conv3d": (lambda k: eqx.nn.Conv3d(1, 2, 2, use_bias=False, key=k), (1, 3, 3, 3)),
    "ConvTranspose1d": (lambda k: eqx.nn.ConvTranspose1d(4, 6, 3, stride=2, key=k), (4, 5)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions(getkey, name):
    make, shape = CONVOLUTIONS[name]
    layer = make(getkey())
    coded = quantize(layer)
    plain, x = dequantize(coded), jr.normal(getkey(), shape)
    assert type(plain) is type(layer) and isinstance(coded, type(layer))
    assert type(coded).__name__ == name
    np.testing.assert_allclose(coded(x), plain(x), rtol=1e-5, atol=1e-5)
    slope = eqx.filter_jit(lambda m: jax.grad(lambda x: jnp.sum(jnp.sin(m(x))))(x))
    slopes = [slope(m) for m in (coded, plain)]
    np.testing.assert_allclose(*slopes, rtol=1e-5, atol=1e-5)


def test_old_layers_are_dropped_one_by_one(getkey, monkeypatch):
    model = [eqx.nn.Linear(8, 8, key=getkey()) for _ in range(3)]
    references, alive = [weakref.ref(layer.weight) for layer in model], []
    of = QuantizedArray.of.__func__

    def counted(cls, *args):
        alive.append(sum(reference() is not None for reference in references))
        return of(cls, *args)

    monkeypatch.setattr(QuantizedArray, "of", classmethod(counted))
    held = [model]
    del model
    inspect.unwrap(quantize)(held.pop())
    assert alive == [3, 2, 1]


class Beside(LoRAWrapper):
    """An adapter with a layer of its own."""

    adapter_fields = ("beside",)
    base: eqx.nn.Linear
    beside: eqx.nn.Linear

    @classmethod
    def applies_to(cls, leaf):
        return isinstance(leaf, eqx.nn.Linear)

    def __init__(self, base, *, key):
        self.base, self.beside = base, eqx.nn.Linear(4, 4, key=key)

    def __call__(self, x):
        return self.base(x) + self.beside(x)

    def merge(self):
        return self.base


def test_layers_in_adapters_are_quantised_and_layers_of_an_adapter_itself_are_not(getkey):
    adapted = apply_lora(eqx.nn.Linear(4, 4, key=getkey()), key=getkey(), wrapper=Beside)
    coded = quantize(adapted)
    assert scheme_of(coded.base.weight) == "nf4" and coded.beside.weight is adapted.beside.weight
    assert [row.path for row in plan_quantization(adapted).rows] == ["base"]


def test_tied_weights(getkey):
    table = eqx.nn.Embedding(11, 6, key=getkey())
    head = eqx.nn.Linear(6, 11, use_bias=False, key=getkey())
    weights = lambda pair: pair[1].weight, lambda pair: pair[0].weight
    coded = quantize(eqx.nn.Shared((table, head), *weights))
    (table, head), (plain_table, plain_head) = coded(), dequantize(coded)()
    np.testing.assert_allclose(head(table(3)), plain_head(plain_table(3)), rtol=1e-5)


def test_equinox_files_and_copies(getkey, tmp_path):
    parts = [eqx.nn.Conv1d(2, 3, 2, key=getkey()), eqx.nn.Linear(4, 3, key=getkey())]
    coded = quantize(parts)
    eqx.tree_serialise_leaves(tmp_path / "leaves", coded)
    template = eqx.filter_eval_shape(quantize, parts)
    assert eqx.tree_equal(eqx.tree_deserialise_leaves(tmp_path / "leaves", template), coded)
    assert eqx.tree_equal(copy.deepcopy(coded), coded)
    assert pickle.loads(pickle.dumps(coded)) == coded
    x = jnp.ones((2, 5))
    np.testing.assert_array_equal(coded[0](x=x), coded[0](x, key=getkey()))


def test_empty_weights_and_other_reasons(getkey):
    class Spectral(eqx.Module):
        weights: jax.Array

    empty = LookAlike(jnp.zeros((3, 0)), 0, 3)
    parts = {"cell": eqx.nn.GRUCell(4, 4, key=getkey()), "spectral": Spectral(jnp.ones(2, complex))}
    stack = eqx.filter_vmap(lambda key: eqx.nn.Linear(3, 3, key=key))(jr.split(getkey(), 2))
    parts |= {"empty": empty, "stack": jax.tree.map(lambda leaf: leaf[:0], stack)}
    weight = jnp.ones((2, 3), int)
    linear = eqx.nn.Linear(3, 2, key=getkey())
    parts["integers"] = eqx.tree_at(lambda m: m.weight, linear, weight)
    plan = plan_quantization({**parts, "mha": eqx.nn.MultiheadAttention(2, 8, key=getkey())})
    reasons = {row.path: row.reason for row in plan.left_alone}
    assert reasons == {
        "cell": "it is not a linear, convolution or embedding layer",
        "spectral": "its numbers are complex, and have no codes",
        "empty": "its weight (3, 0) is empty",
        "stack": "its weight is empty",
        "integers": "its weight is int32 (2, 3), not (out_features, in_features) = (2, 3)",
    }
    assert len(plan.quantized) == 4  # the projections of the attention
    codes = quantize(linear).weight  # outside of a layer
    assert [row.path for row in plan_quantization({"codes": codes, "x": linear})] == ["x"]


@pytest.mark.parametrize("scheme", ["nf4", "int8"])
def test_sizes_at_the_ends_of_a_dtype(getkey, scheme):
    W = jr.normal(getkey(), (8, 64))
    W = W / jnp.abs(W).max()
    for weight in (1e-40 * W, 1e30 * W, (65504 * W).astype(jnp.float16)):
        coded = quantize(eqx.nn.Embedding(weight=weight), scheme)
        decoded, old = coded.weight.decoded().astype(jnp.float32), weight.astype(jnp.float32)
        assert jnp.max(jnp.abs(decoded - old)) <= 0.25 * jnp.max(jnp.abs(old)) + 1e-36
    if scheme == "nf4":  # the mean of the scales is not finite
        with pytest.raises(SelectionError, match="too near to the largest of float32"):
            quantize(eqx.nn.Embedding(weight=3e38 * W.at[:, 0].set(1)))


def test_half_precision_and_numpy(getkey):
    layer = eqx.nn.Linear(6, 5, key=getkey(), dtype=jnp.bfloat16)
    coded = quantize(layer)
    assert coded.weight.dtype == coded(jnp.ones(6, jnp.bfloat16)).dtype == jnp.bfloat16
    in_numpy = eqx.tree_at(lambda m: m.weight, layer, np.asarray(layer.weight))
    assert quantize(in_numpy).weight == coded.weight


@pytest.mark.slow
def test_shardings(getkey):
    mesh = Mesh(np.array(jax.devices()[:4]).reshape(2, 2), ("a", "b"))
    layer = eqx.nn.Linear(256, 6, key=getkey())
    placed = NamedSharding(mesh, PartitionSpec("a", "b"))
    sharded = eqx.tree_at(lambda m: m.weight, layer, jax.device_put(layer.weight, placed))
    coded = quantize(sharded)
    assert coded.weight.sharding.is_equivalent_to(placed, 2)
    assert {x.sharding.mesh for x in jax.tree.leaves(coded.weight)} == {mesh}
    assert coded.weight.parts[0].sharding.spec == PartitionSpec("a", "b")
    np.testing.assert_allclose(coded.weight.decoded(), quantize(layer).weight.decoded(), rtol=1e-5)
    odd = eqx.nn.Linear(30, 6, key=getkey())  # 15 bytes a row
    odd = eqx.tree_at(lambda m: m.weight, odd, jax.device_put(odd.weight, placed))
    assert quantize(odd).weight.codes.sharding.spec == PartitionSpec("a", None)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: quantize(m, "nf5"), "must be one of nf4, int4, int8, fp8, but is 'nf5'"),
        (lambda m: quantize(m, target="layer/0"), "(?s).*layers/0: the target does not match"),
        (lambda m: quantize(quantize(m)), "layers/0: its weight is quantised already"),
        (lambda m: quantize(Net(m)), "net.module"),
        (
            lambda m: quantize(eqx.tree_at(lambda m: m.layers[1].weight, m, replace_fn=jnp.log)),
            "Linear at 'layers/1' holds NaN",
        ),
    ],
)
def test_errors(model, unchecked, call, message):
    with pytest.raises(SelectionError, match=message):
        call(model)
