"""Shared parts of these tests: meshes, how models lie on them, models, and a training step."""

import dataclasses
import functools
import pathlib
import re
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P

import jno_lora_zoo
from jno.lora import (
    CheckpointError,
    LoRAWrapper,
    apply_lora,
    load_adapters,
    lora_trainable_filter,
    merge_lora,
    save_adapters,
)
from jno_lora_zoo import LoRAEmbedding

# The fields of the last five are those of the first six.
ALL_METHODS = [
    *("LoRA", "DoRA", "PiSSA", "VeRA", "LoKr", "OFT"),
    *("rsLoRA", "LoRAFA", "MiLoRA", "LoRAXS", "IA3"),
]
# They decompose the weight, for which every device needs the whole of it.
BY_SVD = {"PiSSA", "MiLoRA", "LoRAXS"}
# The kind of each axis of an adapter's array, as far as it can be sharded.
FIELDS = {
    **dict.fromkeys(("lora_A", "initial_A"), (None, "in")),
    **dict.fromkeys(("lora_B", "initial_B"), ("out", None)),
    **dict.fromkeys(("magnitude", "scale", "b"), ("out",)),
}

_GATHER = re.compile(r"= \(?\w+\[([\d,]*)\]\S* (?:all-gather|all-to-all)(?:-start)?\(")


@dataclasses.dataclass(frozen=True)
class Layout:
    """A mesh, and over which of its axes the hidden width (`tensor`), the other axes of weights
    (`fsdp`) and the batch are cut.
    """

    mesh: tuple[tuple[str, int], ...]
    tensor: str | None = None
    fsdp: str | None = None
    batch: str | None = None

    def build(self) -> Mesh:
        """The mesh, over all devices."""
        names, sizes = zip(*self.mesh, strict=True)
        return Mesh(np.array(jax.devices()).reshape(sizes), names)

    def spec(self, *axes: str | None) -> P:
        """The partition spec of an array with these kinds of axis."""
        kinds = {"tensor": self.tensor, "fsdp": self.fsdp, None: None}
        return P(*(kinds[axis] for axis in axes))


LAYOUTS = {
    "data": Layout((("data", 8),), batch="data"),
    "tensor": Layout((("model", 8),), tensor="model"),
    "fsdp": Layout((("data", 8),), fsdp="data", batch="data"),
    "2d": Layout((("data", 2), ("model", 4)), tensor="model", fsdp="data", batch="data"),
}
CUT = ["tensor", "fsdp", "2d"]


class Small(eqx.Module):
    """A convolution, a linear layer that widens and one that narrows."""

    conv: eqx.nn.Conv1d
    up: eqx.nn.Linear
    down: eqx.nn.Linear

    # By a regex on the path: the kinds of axis. Others are replicated.
    axes: ClassVar[dict] = {
        "conv/weight": ("tensor", "fsdp", None),
        "conv/bias": ("tensor", None),
        "up/weight": ("tensor", "fsdp"),
        "up/bias": ("tensor",),
        "down/weight": ("fsdp", "tensor"),
        "down/bias": ("fsdp",),
    }

    def __init__(self, key, width=16, hidden=32):
        keys = jax.random.split(key, 3)
        self.conv = eqx.nn.Conv1d(width, hidden, 3, padding=1, key=keys[0])
        self.up = eqx.nn.Linear(hidden, 2 * hidden, key=keys[1])
        self.down = eqx.nn.Linear(2 * hidden, width, key=keys[2])

    def __call__(self, x):
        h = jnp.mean(jax.nn.tanh(self.conv(x)), axis=1)
        return self.down(jax.nn.tanh(self.up(h)))

    @staticmethod
    def data():
        """A batch of inputs and targets."""
        x, y = jax.random.split(jax.random.key(7))
        return jax.random.normal(x, (8, 16, 6)), jax.random.normal(y, (8, 16))


class Block(eqx.Module):
    """Two linear layers, beside the identity."""

    up: eqx.nn.Linear
    down: eqx.nn.Linear

    def __init__(self, key):
        up, down = jax.random.split(key)
        self.up, self.down = eqx.nn.Linear(16, 32, key=up), eqx.nn.Linear(32, 16, key=down)

    def __call__(self, x):
        return x + self.down(jax.nn.gelu(self.up(x)))


class Transformer(eqx.Module):
    """Embedding, attention, a stack of blocks run by `lax.scan`, and a head."""

    embedding: eqx.nn.Embedding
    attention: eqx.nn.MultiheadAttention
    blocks: Block
    head: eqx.nn.Linear

    axes: ClassVar[dict] = {
        "embedding/weight": ("tensor", "fsdp"),
        "(query|key|value)_proj/weight": ("tensor", "fsdp"),
        "output_proj/weight": ("fsdp", "tensor"),
        "blocks/up/weight": (None, "tensor", "fsdp"),
        "blocks/up/bias": (None, "tensor"),
        "blocks/down/weight": (None, "fsdp", "tensor"),
        "blocks/down/bias": (None, "fsdp"),
        "head/weight": ("tensor", "fsdp"),
        "head/bias": ("tensor",),
    }

    def __init__(self, key):
        keys = jax.random.split(key, 4)
        self.embedding = eqx.nn.Embedding(24, 16, key=keys[0])
        self.attention = eqx.nn.MultiheadAttention(8, 16, key=keys[1])
        self.blocks = eqx.filter_vmap(Block)(jax.random.split(keys[2], 3))
        self.head = eqx.nn.Linear(16, 8, key=keys[3])

    def __call__(self, tokens):
        x = jax.vmap(self.embedding)(tokens)
        x = x + self.attention(x, x, x)
        arrays, static = eqx.partition(self.blocks, eqx.is_array)

        def body(x, arrays):
            return jax.vmap(eqx.combine(arrays, static))(x), None

        x, _ = jax.lax.scan(body, x, arrays)
        return self.head(jnp.mean(x, axis=0))

    @staticmethod
    def data():
        """A batch of tokens and targets."""
        x, y = jax.random.split(jax.random.key(7))
        return jax.random.randint(x, (8, 5), 0, 24), jax.random.normal(y, (8, 8))


def path_of(keys) -> str:
    return jtu.keystr(keys, simple=True, separator="/")


def shard(model, layout: Layout, mesh: Mesh):
    """`model` on the mesh. Every process makes the pieces of its own devices."""

    def place(keys, leaf):
        if not eqx.is_array(leaf):
            return leaf
        kinds = [axes for regex, axes in model.axes.items() if re.search(regex, path_of(keys))]
        spec = layout.spec(*kinds[0]) if kinds else P()
        return put(leaf, NamedSharding(mesh, spec))

    return jtu.tree_map_with_path(place, model)


def put(array, sharding: NamedSharding):
    values = np.asarray(array)
    return jax.make_array_from_callback(values.shape, sharding, lambda index: values[index])


def put_batch(data, layout: Layout, mesh: Mesh):
    sharding = NamedSharding(mesh, P(layout.batch))
    return tuple(put(array, sharding) for array in data)


@functools.cache
def mesh_of(layout: str) -> Mesh:
    return LAYOUTS[layout].build()


@functools.cache
def base(kind: type, layout: str | None) -> Any:
    """The model, on one device if there is no layout."""
    model = kind(jax.random.key(0))
    return model if layout is None else shard(model, LAYOUTS[layout], mesh_of(layout))


def wrappers_of(method: str) -> list[type[LoRAWrapper]]:
    return [getattr(jno_lora_zoo, f"{method}{kind}") for kind in ("Linear", "Conv")]


@functools.cache
def adapted(method: str, layout: str | None) -> Any:
    """The small model with one method everywhere."""
    return adapt(base(Small, layout), wrappers_of(method))


@functools.cache
def adapted_transformer(layout: str | None) -> Any:
    """The transformer with LoRA everywhere, the embedding included."""
    return adapt(base(Transformer, layout), ["lora", LoRAEmbedding])


def adapt(model, wrappers):
    return apply_lora(model, 4, 8.0, key=jax.random.key(1), wrapper=wrappers)


def adapters_in(model) -> dict[str, LoRAWrapper]:
    is_adapter = lambda node: isinstance(node, LoRAWrapper)  # noqa: E731
    nodes = jtu.tree_leaves_with_path(model, is_leaf=is_adapter)
    return {path_of(keys): node for keys, node in nodes if is_adapter(node)}


def perturbed(model):
    """The adapters away from where they start, by the same numbers on every mesh."""

    def move(keys, leaf, trains):
        if not trains:
            return leaf
        seed = np.frombuffer(path_of(keys).encode(), np.uint8)
        noise = np.random.default_rng(seed).normal(size=leaf.shape) * 0.1
        return leaf + put(noise.astype(leaf.dtype), leaf.sharding)

    return jtu.tree_map_with_path(move, model, lora_trainable_filter(model))


def loss(trainable, frozen, x, y):
    model = eqx.combine(trainable, frozen)
    return jnp.mean((jax.vmap(model)(x) - y) ** 2)


def compiled_step(model, optimiser, data):
    """A donated training step, compiled, and what it starts from: trainable, state, frozen."""
    trainable, rest = eqx.partition(model, lora_trainable_filter(model))
    frozen, static = eqx.partition(rest, eqx.is_array)
    shardings = jax.tree.map(lambda a: a.sharding, trainable)

    def step(trainable, state, frozen, x, y):
        def loss_of(trainable):
            return loss(trainable, eqx.combine(frozen, static), x, y)

        value, grads = jax.value_and_grad(loss_of)(trainable)
        # Left to itself the compiler may lay out what it returns in another way.
        grads = jax.lax.with_sharding_constraint(grads, shardings)
        updates, state = optimiser.update(grads, state, trainable)
        return eqx.apply_updates(trainable, updates), state, value

    state = optimiser.init(trainable)
    like = jax.tree.leaves(shardings)[0]
    if isinstance(like, NamedSharding):
        # Counters start on one device, and come back from the mesh.
        counters = NamedSharding(like.mesh, P())
        state = jax.tree.map(lambda a: a if a.ndim else jax.device_put(a, counters), state)
    jitted = jax.jit(step, donate_argnums=(0, 1))
    return jitted.lower(trainable, state, frozen, *data).compile(), trainable, state, frozen


def gathered(program: str) -> list[int]:
    """The number of elements of each array that a program, once split, gathers from devices."""
    shapes = [shape.split(",") for shape in _GATHER.findall(program)]
    return [int(np.prod([int(size) for size in shape if size])) for shape in shapes]


def copied(tree):
    """Fresh buffers, that a step may take over."""
    return jax.tree.map(lambda a: jnp.copy(a) if eqx.is_array(a) else a, tree)


def assert_same_sharding(new, old, what=""):
    new, old = (eqx.filter(tree, eqx.is_array) for tree in (new, old))
    for (keys, a), b in zip(jtu.tree_leaves_with_path(new), jax.tree.leaves(old), strict=True):
        same = a.sharding.is_equivalent_to(b.sharding, b.ndim)
        assert same, f"{what}{path_of(keys)}: {a.sharding}, expected {b.sharding}"


def assert_close(got, expected, **tolerance):
    got, expected = (eqx.filter(tree, eqx.is_inexact_array) for tree in (got, expected))
    leaves = zip(jtu.tree_leaves_with_path(got), jax.tree.leaves(expected), strict=True)
    for (keys, a), b in leaves:
        np.testing.assert_allclose(a, b, err_msg=path_of(keys), **tolerance)


def step_and_merge(mesh: Mesh, folder: pathlib.Path) -> dict[str, np.ndarray]:
    """One training step with a method on each layer, as every process sees the result.

    Also what merging, and saving into `folder` and loading, make of it.
    """
    layout = dataclasses.replace(LAYOUTS["2d"], mesh=tuple(mesh.shape.items()))
    plain = shard(Small(jax.random.key(0)), layout, mesh)
    methods = {"conv": "lora", "up": "dora", "down": "pissa"}
    specs = [{"target": target, "wrapper": wrapper} for target, wrapper in methods.items()]
    model = perturbed(apply_lora(plain, 4, 8.0, key=jax.random.key(1), specs=specs))
    data = put_batch(Small.data(), layout, mesh)
    step, trainable, state, frozen = compiled_step(model, optax.sgd(0.1, momentum=0.9), data)
    trainable, state, value = step(trainable, state, frozen, *data)
    trained = eqx.combine(trainable, model)
    file = folder / "adapters.safetensors"
    save_adapters(trained, file, base_values=plain)
    loaded = load_adapters(plain, file, strict="values")
    doubled = jax.tree.map(lambda leaf: 2 * leaf if eqx.is_array(leaf) else leaf, plain)
    with pytest.raises(CheckpointError, match=r"\n  - conv: the layer(.|\n)*\n  - up: the layer"):
        load_adapters(doubled, file, strict="values")
    with pytest.raises(CheckpointError):  # every process learns that the first one failed
        save_adapters(trained, folder / "no such folder" / "file")
    merged = merge_lora(trained)
    assert_same_sharding(merged, plain)
    assert_same_sharding(loaded, trained)
    tree = {"loss": value, "trained": trainable, "merged": merged, "loaded": loaded}
    leaves = jtu.tree_leaves_with_path(whole(eqx.filter(tree, eqx.is_array), mesh))
    return {path_of(keys): np.asarray(leaf) for keys, leaf in leaves}


def whole(tree, mesh: Mesh):
    """The arrays of `tree`, all of them on every device."""
    return jax.jit(lambda tree: tree, out_shardings=NamedSharding(mesh, P()))(tree)
