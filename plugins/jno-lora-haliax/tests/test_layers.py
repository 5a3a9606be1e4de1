"""Orders of axes, stacks, meshes, dtypes and parametrisations of Haliax's layers."""

import dataclasses

import equinox as eqx
import haliax as hax
import haliax.nn as hnn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from haliax.nn.scan import BlockSeq, Stacked
from haliax.quantization import DefaultDotGeneralOp
from jax.sharding import Mesh, PartitionSpec as P
from tests.sharding.layouts import gathered
from zoo_cases import perturb

from jno.lora import Net, WrapperError, lora_trainable_filter, merge_lora, plan_lora
from jno_lora_haliax import (
    DoRAHaliaxLinear,
    LoRAHaliaxConv,
    LoRAHaliaxEmbedding,
    LoRAHaliaxLinear,
    OFTHaliaxLinear,
)

KEY = jax.random.key(0)
IN, HEADS, SIZE, BATCH, CHANNELS = hax.make_axes(embed=4, heads=2, size=3, batch=3, channels=5)
VOCAB, HIDDEN, LAYER = hax.make_axes(vocab=7, hidden=8, layer=3)


def normal(*axes):
    return hax.random.normal(jax.random.key(7), axes)


def adapted(cls, layer, **options):
    """The adapter after training."""
    return perturb(cls(layer, 2, 3.0, key=jax.random.key(1), **options))


def assert_same(y, expected, tolerance=1e-5):
    assert y.axes == expected.axes and y.dtype == expected.dtype
    np.testing.assert_allclose(
        y.array.astype(jnp.float32), expected.array.astype(jnp.float32), rtol=0, atol=tolerance
    )


@pytest.mark.parametrize(
    "cls",
    [
        *(LoRAHaliaxLinear, DoRAHaliaxLinear),
        pytest.param(OFTHaliaxLinear, marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("use_bias", [True, False])
def test_adapters_fit_every_order_of_the_weights_axes(cls, use_bias):
    last = hnn.Linear.init((IN, CHANNELS), (HEADS, SIZE), key=KEY, use_bias=use_bias)
    first = dataclasses.replace(last, weight=last.weight.rearrange((IN, CHANNELS, HEADS, SIZE)))
    mixed = dataclasses.replace(last, weight=last.weight.rearrange((SIZE, IN, HEADS, CHANNELS)))
    adapters = [adapted(cls, layer) for layer in (last, first, mixed)]
    x = normal(CHANNELS, BATCH, IN)
    expected = adapters[0].merge()(x)
    assert set(expected.axes) == {BATCH, HEADS, SIZE}
    assert float(jnp.abs((expected - last(x)).array).max()) > 0.1
    for adapter, layer in zip(adapters, (last, first, mixed), strict=True):
        assert jax.tree.structure(adapter.merge()) == jax.tree.structure(layer)
        for turned in (x, x.rearrange((BATCH, IN, CHANNELS))):
            # The layer itself puts the axes in the order of its weight.
            assert_same(adapter(turned), expected.rearrange(adapter(turned).axes))
            assert_same(adapter.merge()(turned), expected.rearrange(adapter.merge()(turned).axes))
    assert adapters[0](x).axes == last(x).axes
    if use_bias:
        assert jnp.array_equal(adapters[0].merge().bias.array, last.bias.array)


def test_a_lookup_and_the_head_that_shares_its_table_use_the_adapted_table():
    adapter = adapted(LoRAHaliaxEmbedding, hnn.Embedding.init(VOCAB, (HEADS, SIZE), key=KEY))
    merged, x = adapter.merge(), normal(BATCH, HEADS, SIZE)
    ids = hax.named(jnp.array([[6, 0], [1, 6]]), (BATCH.resize(2), IN.resize(2)))
    assert_same(adapter(ids), merged(ids))
    assert_same(adapter.embed(ids), merged(ids))
    assert_same(adapter.unembed(x), merged.unembed(x))
    assert jnp.array_equal(adapter.weight.array, merged.weight.array)
    assert float(jnp.abs((merged.unembed(x) - adapter.base.unembed(x)).array).max()) > 0.1


def test_dropout_drops_inputs_of_the_low_rank_product():
    layer = hnn.Linear.init(IN, (HEADS, SIZE), key=KEY)
    adapter, x = adapted(LoRAHaliaxLinear, layer, dropout=0.5), normal(BATCH, IN)
    dropped = adapter.dropout(adapter.read(x), key=KEY)
    assert jnp.any(dropped == 0) and jnp.any(dropped != 0)
    update = adapter.scaling * adapter.lora_B @ (adapter.lora_A @ dropped)
    expected = layer(x) + hax.named(update.T.reshape(3, 2, 3), (BATCH, HEADS, SIZE))
    assert_same(adapter(x, key=KEY), expected)
    without = eqx.nn.inference_mode(adapter)
    assert_same(without(x), adapter.merge()(x))
    with pytest.raises(WrapperError, match="without `key=`"):
        adapter(x)
    with pytest.raises(ValueError, match="`dropout`"):
        adapted(LoRAHaliaxConv, hnn.Conv.init((SIZE,), IN, CHANNELS, 1, key=KEY), dropout=0.5)


def test_a_layer_in_half_precision_has_adapters_in_single_precision():
    layer = hnn.Linear.init(IN, (HEADS, SIZE), key=KEY)
    layer = jax.tree.map(lambda x: x.astype(jnp.bfloat16), layer)
    adapter, x = adapted(LoRAHaliaxLinear, layer), normal(BATCH, IN).astype(jnp.bfloat16)
    assert_same(adapter(x), adapter.merge()(x), tolerance=0.05)
    trained, rest = eqx.partition(adapter, lora_trainable_filter(adapter))
    gradient = jax.grad(lambda t: eqx.combine(t, rest)(x).sum().scalar().astype(float))(trained)
    arrays = jax.tree.leaves((trained, gradient))
    assert [array.dtype for array in arrays] == [jnp.float32] * 4
    assert all(jnp.any(array != 0) for array in arrays)


@pytest.mark.parametrize("factor", [0.25, 4.0])
def test_a_parametrisation_counts_as_a_part_of_the_matrix(factor):
    class Scaled(hnn.mup.LinearStandardParam):
        active_scale = factor

    class ScaledTable(hnn.mup.EmbeddingStandardParam):
        active_scale = factor

    layer = hnn.Linear.init(IN, (HEADS, SIZE), key=KEY, reparam_cls=Scaled)
    adapter, x = adapted(LoRAHaliaxLinear, layer), normal(BATCH, IN)
    update = adapter.scaling * adapter.lora_B @ adapter.lora_A @ x.array.T
    expected = layer(x) + hax.named(update.T.reshape(3, 2, 3), (BATCH, HEADS, SIZE))
    assert_same(adapter(x), expected)
    assert_same(adapter.merge()(x), expected)
    table = hnn.Embedding.init(VOCAB, IN, key=KEY, reparam_cls=ScaledTable)
    adapter, ids = adapted(LoRAHaliaxEmbedding, table), hax.named(jnp.array([6, 0, 6]), BATCH)
    update = adapter.scaling * adapter.lora_B @ adapter.lora_A[:, ids.array]
    expected = table(ids) + hax.named(update.T, (BATCH, IN))
    assert_same(adapter(ids), expected)
    assert_same(adapter.merge()(ids), expected)


class Halved(DefaultDotGeneralOp):
    """Another product, as FP8's is."""

    def __call__(self, lhs, rhs, *args, **kwargs):
        return super().__call__(lhs / 2, rhs, *args, **kwargs)


class Doubled(hnn.Linear):
    def __call__(self, inputs, *, key=None):
        return 2 * super().__call__(inputs, key=key)


def test_a_layer_that_computes_something_else_is_called_with_the_adapted_weight():
    layer, x = hnn.Linear.init(IN, (HEADS, SIZE), key=KEY, use_bias=False), normal(BATCH, IN)
    expected = adapted(LoRAHaliaxLinear, layer)(x)
    halved = adapted(LoRAHaliaxLinear, dataclasses.replace(layer, dot_general=Halved()))
    assert_same(2 * halved(x), expected)
    doubled = adapted(LoRAHaliaxLinear, Doubled(**vars(layer)))
    assert_same(doubled(x) / 2, expected)


class Block(eqx.Module):
    """A layer of a stack: widens, narrows, and adds a bias of its own."""

    up: hnn.Linear
    down: hnn.Linear
    shift: hax.NamedArray

    @staticmethod
    def init(*, key):
        up, down = jax.random.split(key)
        up = hnn.Linear.init(IN, HIDDEN, key=up)
        down = hnn.Linear.init(HIDDEN, IN, key=down, out_first=False)
        return Block(up, down, hax.ones(IN))

    def __call__(self, x):
        return x + self.shift + self.down(hax.tanh(self.up(x)))

    def with_output(self, x):
        return self(x), self.up(x)


def stack_of(form):
    return form.init(LAYER, Block)(key=jax.random.split(KEY, LAYER.size))


@pytest.mark.parametrize("wrapper", ["lora", "dora", "lokr"])
def test_layers_of_a_stack_have_their_own_slices_of_the_adapters_arrays(wrapper):
    stacked = perturb(Net(stack_of(Stacked)).lora(rank=2, wrapper=wrapper).module)
    x = normal(BATCH, IN)
    assert {len(array) for array in stacked.stacked.up.state().values()} == {LAYER.size}
    merged = merge_lora(stacked)
    assert jax.tree.structure(merged) == jax.tree.structure(stack_of(Stacked))
    expected = merged.fold(x)
    assert_same(stacked.fold(x), expected)
    assert float(jnp.abs((expected - stack_of(Stacked).fold(x)).array).max()) > 0.05
    by_block = x
    for block in stacked.unstacked():
        by_block = block(by_block)
    assert_same(by_block, expected)
    for ours, theirs in zip(
        stacked.scan_via(Block.with_output)(x), merged.scan_via(Block.with_output)(x), strict=True
    ):
        assert_same(ours, theirs)


def test_blocks_of_a_sequence_are_layers_of_their_own():
    net = Net(stack_of(BlockSeq)).lora(rank=2, target="blocks/[02]/up")
    model, x = perturb(net.module), normal(BATCH, IN)
    assert isinstance(model.blocks[2].up, LoRAHaliaxLinear)
    assert model.blocks[2].up.lora_A.shape == (2, IN.size)
    assert isinstance(model.blocks[1].up, hnn.Linear)
    assert_same(model.fold(x), merge_lora(model).fold(x))


def test_adapters_of_a_sharded_model_are_sharded_as_its_layers_are():
    mesh = Mesh(np.array(jax.devices()).reshape(2, 4), ("data", "model"))
    mapping = {"batch": "data", "hidden": "model"}
    batch, stack = hax.Axis("batch", 8), stack_of(Stacked)
    with jax.set_mesh(mesh), hax.axis_mapping(mapping):
        model = hax.shard(stack, mapping)
        adapted = perturb(Net(model).lora(rank=2).module)
        up, down = adapted.stacked.up, adapted.stacked.down
        specs = [x.sharding.spec for x in (up.lora_A, up.lora_B, down.lora_A, down.lora_B)]
        sharded = [P(None, "model", None), P(None, None, "model")]
        for spec, expected in zip(specs, [P(), *sharded, P()], strict=True):
            padded = (*spec, *(None,) * (3 - len(spec)))
            assert padded == (*expected, *(None,) * (3 - len(expected)))
        x = hax.shard(hax.random.normal(KEY, (batch, IN)), mapping)
        call = hax.named_jit(lambda model, x: model.fold(x), axis_resources=mapping)
        y = call(adapted, x)
        assert_same(y, call(merge_lora(adapted), x))
        assert y.array.sharding.spec[0] == "data"

        def loss(trained, rest, x):
            return (eqx.combine(trained, rest).fold(x) ** 2).sum().scalar()

        trained, rest = eqx.partition(adapted, lora_trainable_filter(adapted))
        frozen, static = eqx.partition(rest, eqx.is_array)
        step = jax.jit(jax.grad(lambda t, f, x: loss(t, eqx.combine(f, static), x)))
        assert gathered(step.lower(trained, frozen, x).compile().as_text()) == []


def test_linear_layers_and_convolutions_have_adapters_by_default():
    model = {"embed": hnn.Embedding.init(VOCAB, IN, key=KEY), "stack": stack_of(Stacked)}
    model["conv"] = hnn.Conv.init((SIZE,), IN, CHANNELS, 1, key=KEY)
    plan = plan_lora(model, rank=2)
    assert {row.path: row.wrapper.__name__ for row in plan} == {
        "conv": "LoRAHaliaxConv",
        "stack/stacked/up": "LoRAHaliaxLinear",
        "stack/stacked/down": "LoRAHaliaxLinear",
    }
    assert "embed" in str(plan)
