"""Flax Linen: every layer with a matrix, its transformations, states, keys, precisions, meshes."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import jax.random as jr
import pytest
from jax.sharding import NamedSharding, PartitionSpec as P

from jno.lora import Net
from jno_lora_arrays import declare, infer, plain, through

from ._checks import METHODS, check, net_of

X = jr.normal(jr.key(0), (2, 6, 8))


class Block(nn.Module):
    """A block of a transformer."""

    dropout: float = 0.0
    dtype: object = None

    @nn.compact
    def __call__(self, x, deterministic=True):
        attention = nn.MultiHeadDotProductAttention(num_heads=2, dtype=self.dtype)
        x = x + attention(nn.LayerNorm(dtype=self.dtype)(x))
        h = nn.gelu(nn.Dense(16, dtype=self.dtype)(nn.LayerNorm(dtype=self.dtype)(x)))
        h = nn.Dropout(self.dropout, deterministic=deterministic)(h)
        return x + nn.Dense(8, dtype=self.dtype)(h)


class Language(nn.Module):
    """Embedding, blocks, and the embedding again as the head."""

    remat: bool = False
    scan: bool = False

    @nn.compact
    def __call__(self, ids):
        embed = nn.Embed(11, 8)
        x = embed(ids)
        block = nn.remat(Block) if self.remat else Block
        if self.scan:
            stack = nn.scan(
                lambda module, x, _: (module(x), None),
                variable_axes={"params": 0},
                split_rngs={"params": True},
                length=3,
            )
            x, _ = stack(block(), x, None)
        else:
            x = block()(block()(x))
        return embed.attend(x)


class Images(nn.Module):
    """Convolutions of each kind, grouped and transposed, and a batch norm."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Conv(8, (3, 3))(x)
        x = nn.BatchNorm(use_running_average=not train)(x)
        x = nn.Conv(8, (3, 3), feature_group_count=2)(nn.relu(x))
        x = nn.ConvTranspose(8, (2, 2), strides=(2, 2))(nn.relu(x))
        return nn.DenseGeneral((2, 3), axis=(1, 2, 3))(x)


IDS = jnp.array([[1, 4, 10], [0, 4, 7]])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["plain", "remat", "scan", "both"])
def test_transformers(kind, method):
    model = Language(remat=kind in ("remat", "both"), scan=kind in ("scan", "both"))
    params = model.init(jr.key(0), IDS)
    assert check(model.apply, params, IDS, method=method) == []


def test_all_matrices_of_a_transformer_are_reached():
    axes = infer(Language(scan=True).apply, Language(scan=True).init(jr.key(0), IDS), IDS)
    found = {path.rsplit("/", 2)[-2]: letters for path, letters in axes.letters.items()}
    assert found["query"] == "sioo" and found["out"] == "siio" and found["Dense_0"] == "sio"
    assert [letters for path, letters in axes.letters.items() if "embedding" in path] == ["eo"]
    # Biases of heads have two axes, or three in a stack.
    assert all("bias" in row.path or "scale" in row.path for row in axes if row.axes is None)


@pytest.mark.parametrize("method", ["lora", "dora"])
def test_states_and_convolutions(method):
    images = jr.normal(jr.key(0), (2, 4, 4, 3))
    model = Images()
    variables = model.init(jr.key(1), images)

    def apply(params, state, images):
        return model.apply({"params": params, **state}, images, train=True, mutable=["batch_stats"])

    state = {"batch_stats": variables["batch_stats"]}
    merged = check(apply, variables["params"], state, images, method=method)
    assert all(use.operation == "conv_general_dilated" for use in merged)
    # Three channels for each of two groups are too few for factors, which is a choice.
    assert method == "dora" or all("merging is cheaper" in use.reason for use in merged)


def test_dropout_keys():
    model = Block(dropout=0.5)
    params = model.init(jr.key(0), X)

    def apply(params, x, key):
        return model.apply(params, x, deterministic=False, rngs={"dropout": key})

    assert check(apply, params, X, jr.key(3)) == []


@pytest.mark.parametrize("method", ["lora", "dora"])
def test_bfloat16(method):
    model = Block(dtype=jnp.bfloat16)
    params = model.init(jr.key(0), X)
    assert check(model.apply, params, X, method=method, tolerance=0.1) == []


@pytest.mark.parametrize("method", ["lora", "dora"])
def test_meshes(method):
    mesh = jax.make_mesh((2, 2), ("data", "model"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    model = Block()
    params = model.init(jr.key(0), X)
    net = net_of(model.apply, params, X, method=method)
    expected = model.apply(plain(net.module), X)

    def place(path, x):
        is_first = "Dense_0" in jax.tree_util.keystr(path) and x.ndim == 2
        return jax.device_put(x, NamedSharding(mesh, P(None, "model") if is_first else P()))

    sharded = jax.tree_util.tree_map_with_path(place, params)
    axes = infer(model.apply, params, X)
    other = Net(declare(sharded, axes)).freeze().lora(rank=2, alpha=3.0, wrapper=method)
    adapter = other.module["params"]["Dense_0"]["kernel"]
    assert adapter.lora_B.sharding.spec[0] == "model"
    other.update(net.partition()[0])
    x = jax.device_put(X, NamedSharding(mesh, P("data")))
    found = jax.jit(lambda params, x: through(model.apply)(params, x))(other.module, x)
    assert jnp.allclose(found, expected, atol=1e-4)


def test_real_sizes_are_reached():
    """A model of the size of GPT-2, of shapes alone."""

    class Large(nn.Module):
        @nn.compact
        def __call__(self, ids):
            embed = nn.Embed(50257, 768)
            x = embed(ids) + nn.Embed(1024, 768)(jnp.arange(ids.shape[-1]))
            for _ in range(12):
                h = nn.LayerNorm()(x)
                x = x + nn.MultiHeadDotProductAttention(num_heads=12)(h)
                x = x + nn.Dense(768)(nn.gelu(nn.Dense(3072)(nn.LayerNorm()(x))))
            return embed.attend(nn.LayerNorm()(x))

    ids = jnp.zeros((1, 16), int)
    params = jax.eval_shape(Large().init, jr.key(0), ids)
    assert infer(Large().apply, params, ids).coverage > 0.999
