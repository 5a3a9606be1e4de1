"""Llama-like blocks that are never allocated: adapted, compiled for virtual devices, and read.

The model is a skeleton of shapes (`eqx.filter_eval_shape`), from the constructor of its layers to
the compiled training step. Only the compiler ever sees it.
"""

import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P

from jno.lora import LoRAWrapper, apply_lora, lora_trainable_filter

# How many blocks the stack has. XLA counts the loop over blocks once, like a single block.
STACK = 2
DTYPE = jnp.bfloat16
# The program is only read, never run.
QUICKLY = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}

Rules = Mapping[str, P]

# Which axis of a weight the mesh cuts, by a regex on the path. The first axis is the stack.
FSDP = {"before": P(), "": P(None, "d", None)}
TENSOR = {"before": P(), "output|down": P(None, None, "d"), "": P(None, "d", None)}

_COLLECTIVE = re.compile(r"= (.*?) (all-gather|all-reduce|reduce-scatter|all-to-all)(?:-start)?\(")
_COMMENT = re.compile(r"/\*.*?\*/")


class Block(eqx.Module):
    """Attention and a gated feed-forward part, without biases."""

    before_attention: eqx.nn.RMSNorm
    query: eqx.nn.Linear
    key: eqx.nn.Linear
    value: eqx.nn.Linear
    output: eqx.nn.Linear
    before_feed_forward: eqx.nn.RMSNorm
    gate: eqx.nn.Linear
    up: eqx.nn.Linear
    down: eqx.nn.Linear
    heads: int = eqx.field(static=True)

    def __init__(self, width: int, inner: int, keys: int, heads: int, key: jax.Array):
        def linear(inputs: int, outputs: int) -> eqx.nn.Linear:
            return eqx.nn.Linear(inputs, outputs, use_bias=False, dtype=DTYPE, key=key)

        def norm() -> eqx.nn.RMSNorm:
            return eqx.nn.RMSNorm(width, use_bias=False, dtype=DTYPE)

        self.before_attention, self.before_feed_forward = norm(), norm()
        self.query, self.output = linear(width, width), linear(width, width)
        self.key, self.value = linear(width, keys), linear(width, keys)
        self.gate, self.up, self.down = (
            linear(width, inner),
            linear(width, inner),
            linear(inner, width),
        )
        self.heads = heads

    def __call__(self, x: jax.Array) -> jax.Array:
        """The features of one sequence, `(length, width)`."""
        length, width = x.shape
        h = jax.vmap(self.before_attention)(x)
        query, key, value = (
            jax.vmap(layer)(h).reshape(length, -1, width // self.heads)
            for layer in (self.query, self.key, self.value)
        )
        h = jax.nn.dot_product_attention(query, key, value, is_causal=True)
        x = x + jax.vmap(self.output)(h.reshape(length, width))

        def feed_forward(h: jax.Array) -> jax.Array:
            return self.down(jax.nn.silu(self.gate(h)) * self.up(h))

        return x + jax.vmap(feed_forward)(jax.vmap(self.before_feed_forward)(x))


class Compiled(NamedTuple):
    """XLA's figures of a step, on one device. XLA counts loops once."""

    trained: int  # parameters, on all devices together
    flops: float
    accessed: float  # bytes
    arguments: int  # bytes
    temporary: int  # bytes
    gathered: float  # numbers that a device receives from the other devices, for one block
    reduced: float  # numbers that devices sum, for one block


def compiled_step(
    sizes: tuple[int, int, int, int],
    adapter: str | None,
    rank: int,
    *,
    devices: int,
    tensor: bool,
    sequences: int,
    length: int,
) -> Compiled:
    """Compile the step of a stack of blocks and read what it costs.

    **Arguments:**

    - `sizes`: the width, the inner width, the width of keys and values, the number of heads.
    - `adapter`: the name of a variant, or `None` to train everything.
    - `devices`: over how many devices the weights are cut.
    - `tensor`: whether tensor parallelism cuts them. Otherwise FSDP cuts the sequences as well.
    - `sequences`, `length`: the batch.
    """
    mesh = Mesh(np.array(jax.devices()[:devices]), ("d",))
    trainable, frozen = parameters(sizes, adapter, rank, mesh, TENSOR if tensor else FSDP)
    optimiser = optax.adam(1e-3)
    # The moments have the shardings of the parameters.
    state = optax.tree_utils.tree_map_params(
        optimiser,
        lambda _, parameter: parameter,
        jax.eval_shape(optimiser.init, trainable),
        trainable,
        transform_non_params=lambda counter: _on(mesh, counter, P()),
    )
    batch = NamedSharding(mesh, P() if tensor else P("d"))
    x = jax.ShapeDtypeStruct((sequences, length, sizes[0]), DTYPE, sharding=batch)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, trainable)

    def run(trainable: Any, frozen: Any, x: jax.Array) -> jax.Array:
        arrays, static = eqx.partition(eqx.combine(trainable, frozen), eqx.is_array)

        @jax.checkpoint
        def body(x: jax.Array, arrays: Any) -> tuple[jax.Array, None]:
            if adapter is None:
                arrays = jax.tree.map(lambda array: array.astype(DTYPE), arrays)
            x = jax.vmap(eqx.combine(arrays, static))(x)
            return jax.lax.with_sharding_constraint(x, batch), None

        return jax.lax.scan(body, x, arrays)[0]

    def step(trainable: Any, state: Any, frozen: Any, x: jax.Array, dy: jax.Array) -> Any:
        _, pullback = jax.vjp(lambda trainable, x: run(trainable, frozen, x), trainable, x)
        grads, dx = pullback(dy)
        grads = jax.lax.with_sharding_constraint(grads, shardings)
        updates, state = optimiser.update(grads, state)
        return optax.apply_updates(trainable, updates), state, dx

    jitted = jax.jit(step, donate_argnums=(0, 1))
    compiled = jitted.lower(trainable, state, frozen, x, x).compile(QUICKLY)
    cost, memory = compiled.cost_analysis(), compiled.memory_analysis()
    return Compiled(
        sum(leaf.size for leaf in jax.tree.leaves(trainable)),
        cost["flops"],
        cost["bytes accessed"],
        memory.argument_size_in_bytes,
        memory.temp_size_in_bytes,
        *collectives(compiled.as_text()),
    )


def parameters(
    sizes: tuple[int, int, int, int], adapter: str | None, rank: int, mesh: Mesh, rules: Rules
) -> tuple[Any, Any]:
    """The trainable and the frozen arrays, as shapes with shardings."""
    key = jax.random.key(0)

    def stack(keys: jax.Array) -> Block:
        return eqx.filter_vmap(lambda key: Block(*sizes, key))(keys)

    def adapt(blocks: Block) -> Block:
        return apply_lora(blocks, rank, float(rank), key=key, wrapper=adapter)

    plain = eqx.filter_eval_shape(stack, jax.random.split(key, STACK))
    if adapter is None:
        # The optimiser updates float32 arrays. The step casts them.
        masters = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.float32), plain)
        return eqx.partition(placed(masters, mesh, rules), lambda _: True)
    model = placed(eqx.filter_eval_shape(adapt, plain), mesh, rules)
    return eqx.partition(model, lora_trainable_filter(model))


def placed(model: Any, mesh: Mesh, rules: Rules) -> Any:
    """A skeleton with shardings. The rules place weights, and adapters place their arrays."""

    def place_weight(path: Any, leaf: Any) -> Any:
        name = jtu.keystr(path, simple=True, separator="/")
        if not name.endswith("/weight"):
            return leaf  # an array of an adapter
        return _on(
            mesh, leaf, next(spec for regex, spec in rules.items() if re.search(regex, name))
        )

    def place_adapter(node: Any) -> Any:
        if not isinstance(node, LoRAWrapper):
            return node
        specs = node.partition_specs()

        def place(path: Any, leaf: Any) -> Any:
            name = path[0].name
            return leaf if name == "base" else _on(mesh, leaf, specs.get(name, P()))

        return jtu.tree_map_with_path(place, node)

    model = jtu.tree_map_with_path(place_weight, model)
    return jax.tree.map(place_adapter, model, is_leaf=lambda node: isinstance(node, LoRAWrapper))


def _on(mesh: Mesh, leaf: Any, spec: P) -> Any:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, spec))


def collectives(program: str) -> tuple[float, float]:
    """How many numbers a compiled program gathers and sums, for one block of the stack.

    **Arguments:**

    - `program`: HLO, split over the devices. Operations outside of loops work on the whole stack.
    """
    body, main = program.split("\nENTRY ")
    numbers = {"gathered": 0.0, "reduced": 0.0}
    for text, blocks in ((body, 1), (main, STACK)):
        for shapes, kind in _COLLECTIVE.findall(_COMMENT.sub("", text)):
            is_sum = kind in ("all-reduce", "reduce-scatter")
            numbers["reduced" if is_sum else "gathered"] += _elements(shapes) / blocks
    return numbers["gathered"], numbers["reduced"]


def _elements(shapes: str) -> int:
    """The numbers in `f32[2,3]{1,0}`, or in a tuple of such shapes."""
    sizes = re.findall(r"\[([\d,]*)\]", shapes)
    return sum(math.prod(map(int, size.split(","))) if size else 1 for size in sizes)
