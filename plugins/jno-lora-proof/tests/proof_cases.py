"""Faults as they really happen to adapters, as data: each makes a wrong model of a right file."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr

from jno.lora import AdapterSet, Net, extract_adapters, merge_lora, swap_adapters
from jno_lora_zoo import METHODS, collect_statistics

WIDTH, HEADS, WORDS = 16, 4, 32


class Block(eqx.Module):
    query: eqx.nn.Linear
    key: eqx.nn.Linear
    value: eqx.nn.Linear
    output: eqx.nn.Linear
    up: eqx.nn.Linear
    down: eqx.nn.Linear
    norm: eqx.nn.LayerNorm

    def __init__(self, key):
        keys = jr.split(key, 6)
        make = functools.partial(eqx.nn.Linear, use_bias=False)
        self.query, self.key, self.value, self.output = (
            make(WIDTH, WIDTH, key=k) for k in keys[:4]
        )
        self.up, self.down = make(WIDTH, 32, key=keys[4]), make(32, WIDTH, key=keys[5])
        self.norm = eqx.nn.LayerNorm(WIDTH)

    def __call__(self, x):
        h = jax.vmap(self.norm)(x)
        q, k, v = (
            jax.vmap(part)(h).reshape(len(x), HEADS, -1)
            for part in (self.query, self.key, self.value)
        )
        weights = jax.nn.softmax(jnp.einsum("qhd,khd->hqk", q, k) / 2.0)
        mixed = jnp.einsum("hqk,khd->qhd", weights, v).reshape(len(x), -1)
        x = x + jax.vmap(self.output)(mixed)
        return x + jax.vmap(lambda row: self.down(jax.nn.relu(self.up(row))))(x)


class Transformer(eqx.Module):
    embedding: eqx.nn.Embedding
    blocks: list[Block]
    norm: eqx.nn.LayerNorm
    head: eqx.nn.Linear

    def __init__(self, key):
        keys = jr.split(key, 5)
        self.embedding = eqx.nn.Embedding(WORDS, WIDTH, key=keys[0])
        self.blocks = [Block(key) for key in keys[1:4]]
        self.norm = eqx.nn.LayerNorm(WIDTH)
        self.head = eqx.nn.Linear(WIDTH, WORDS, use_bias=False, key=keys[4])

    def __call__(self, tokens):
        x = jax.vmap(self.embedding)(tokens)
        for block in self.blocks:
            x = block(x)
        return jax.vmap(lambda row: self.head(self.norm(row)))(x)


TARGETS = "query|value|output|up|down"
TOKENS = jr.randint(jr.key(9), (8, 6), 0, WORDS)


def base(seed=0):
    return Transformer(jr.key(seed))


def squares(model, tokens):
    """A loss, for methods that start from data."""
    return jnp.mean(jax.vmap(model)(tokens) ** 2)


def trained(wrapper="lora", seed=0, **call):
    """A net with adapters, a head and a norm as after training."""
    net = Net(base(seed), key=jr.key(1)).freeze()
    if any(method.variant == wrapper and method.needs for method in METHODS):
        facts = {"wrapper": wrapper, "target": TARGETS}
        call["statistics"] = collect_statistics(net.module, [TOKENS], squares, **facts)
    net.lora(rank=4, alpha=8, target=TARGETS, wrapper=wrapper, **call)
    net.mask("^head/|^norm/").unfreeze()
    trainable, _ = net.partition()
    leaves, structure = jax.tree.flatten(trainable)
    keys = jr.split(jr.key(2), len(leaves))
    moved = [
        x + 0.15 * jr.normal(key, x.shape, x.dtype) for x, key in zip(leaves, keys, strict=True)
    ]
    return net.update(jax.tree.unflatten(structure, moved))


@dataclasses.dataclass(frozen=True)
class Fault:
    """`make(net, base, adapters)` is the wrong model; `cause` is searched in the proof's cause."""

    cause: str
    make: Callable[[Net, Any, AdapterSet], Any]
    wrapper: str = "lora"


FAULTS: dict[str, Fault] = {}


def fault(cause, wrapper="lora"):
    def add(make):
        FAULTS[make.__name__] = Fault(cause, make, wrapper)
        return make

    return add


def with_trained(model, net):
    """The base with the head and the norm of the net."""
    return eqx.tree_at(lambda m: (m.head, m.norm), model, (net.module.head, net.module.norm))


def loaded(net, model, adapters):
    """The right way: the trained arrays, and the adapters."""
    return swap_adapters(with_trained(model, net), adapters)


def edited(adapters, function, only=""):
    """The set with `function(path, adapter)` in the place of its adapters, by their path."""
    changed = {p: function(p, x) if only in p else x for p, x in adapters.adapters.items()}
    return AdapterSet(changed, adapters.shared)


def with_state(adapter, **arrays):
    return dataclasses.replace(adapter, state={**adapter.state, **arrays})


def scaled(alpha):
    return lambda path, adapter: dataclasses.replace(adapter, alpha=alpha)


@fault("scale wrong by 0.5")
def alpha_retyped(net, model, adapters):
    return loaded(net, model, edited(adapters, scaled(4.0)))


@fault("scale wrong by 0.5")
def alpha_of_some_layers_dropped(net, model, adapters):
    return loaded(net, model, edited(adapters, scaled(4.0), "blocks/1"))


@fault("scale wrong by 2")
def scaled_by_the_root_of_the_rank(net, model, adapters):
    return loaded(net, model, edited(adapters, scaled(16.0)))


@fault("scale wrong by -1")
def sign_flipped(net, model, adapters):
    def flip(path, x):
        return with_state(x, lora_B=-x.state["lora_B"])

    return loaded(net, model, edited(adapters, flip))


@fault("transposed")
def factors_exchanged(net, model, adapters):
    def exchange(path, x):
        A, B = x.state["lora_A"], x.state["lora_B"]
        return with_state(x, lora_A=B.T, lora_B=A.T) if A.shape == B.T.shape else x

    return loaded(net, model, edited(adapters, exchange))


@fault("the update of")
def layers_shifted_by_one(net, model, adapters):
    names = {f"blocks/{i}": f"blocks/{(i + 1) % 3}" for i in range(3)}
    moved = {f"{names[p[:8]]}{p[8:]}": x for p, x in adapters.adapters.items()}
    return loaded(net, model, AdapterSet(moved, adapters.shared))


@fault("the update of")
def queries_and_values_exchanged(net, model, adapters):
    def renamed(path):
        parts = {"query": "value", "value": "query"}
        head, _, name = path.rpartition("/")
        return f"{head}/{parts.get(name, name)}"

    moved = {renamed(p): x for p, x in adapters.adapters.items()}
    return loaded(net, model, AdapterSet(moved, adapters.shared))


@fault("missing")
def one_layer_missing(net, model, adapters):
    kept = {p: x for p, x in adapters.adapters.items() if p != "blocks/1/value"}
    return loaded(net, model, AdapterSet(kept, adapters.shared))


@fault("missing")
def last_block_missing(net, model, adapters):
    kept = {p: x for p, x in adapters.adapters.items() if not p.startswith("blocks/2")}
    return loaded(net, model, AdapterSet(kept, adapters.shared))


@fault("missing")
def values_not_targeted(net, model, adapters):
    kept = {p: x for p, x in adapters.adapters.items() if not p.endswith("value")}
    return loaded(net, model, AdapterSet(kept, adapters.shared))


@fault("trained array was not loaded.*head")
def head_missing(net, model, adapters):
    model = eqx.tree_at(lambda m: m.norm, model, net.module.norm)
    return swap_adapters(model, adapters)


@fault("trained array was not loaded")
def norm_missing(net, model, adapters):
    model = eqx.tree_at(lambda m: m.head, model, net.module.head)
    return swap_adapters(model, adapters)


@fault("another base")
def another_base(net, model, adapters):
    return loaded(net, base(5), adapters)


@fault("another base")
def another_revision(net, model, adapters):
    keys = iter(jr.split(jr.key(4), 100))
    moved = jax.tree.map(lambda x: x * (1 + 0.1 * jr.normal(next(keys), x.shape)), model)
    return loaded(net, moved, adapters)


@fault("already merged")
def base_merged_already(net, model, adapters):
    return loaded(net, merge_lora(swap_adapters(model, adapters)), adapters)


@fault("already merged")
def merged_twice(net, model, adapters):
    return merge_lora(base_merged_already(net, model, adapters))


@fault("the layer of")
def layers_of_the_base_shifted(net, model, adapters):
    blocks = [*model.blocks[1:], model.blocks[0]]
    return loaded(net, eqx.tree_at(lambda m: m.blocks, model, blocks), adapters)


@fault("the layer of|rows|another base")
def heads_of_the_base_in_another_order(net, model, adapters):
    order = jnp.arange(WIDTH).reshape(HEADS, -1)[::-1].ravel()
    where = [lambda m, i=i: m.blocks[i].query.weight for i in range(3)]
    for at in where:
        model = eqx.tree_at(at, model, at(model)[order])
    return loaded(net, model, adapters)


@fault("rows in another order")
def heads_of_the_update_in_another_order(net, model, adapters):
    order = jnp.arange(WIDTH).reshape(HEADS, -1).T.ravel()

    def permute(path, x):
        return with_state(x, lora_B=x.state["lora_B"][order])

    return loaded(net, model, edited(adapters, permute, "query"))


@fault("columns in another order")
def inputs_in_another_order(net, model, adapters):
    order = jnp.arange(WIDTH).reshape(HEADS, -1).T.ravel()

    def permute(path, x):
        return with_state(x, lora_A=x.state["lora_A"][:, order])

    return loaded(net, model, edited(adapters, permute, "output"))


@fault("zero")
def never_copied(net, model, adapters):
    def clear(path, x):
        return with_state(x, lora_B=0 * x.state["lora_B"])

    return loaded(net, model, edited(adapters, clear, "blocks/0"))


@fault("inactive")
def disabled_adapters(net, model, adapters):
    return with_trained(model, net)


@fault("inactive|not loaded")
def nothing_loaded(net, model, adapters):
    return model


@fault("read as lora, saved as dora", wrapper="dora")
def read_as_another_method(net, model, adapters):
    lora = extract_adapters(trained("lora").module)

    def as_lora(path, x):
        kept = {k: v for k, v in x.state.items() if k in ("lora_A", "lora_B")}
        return dataclasses.replace(lora.adapters[path], state=kept)

    return loaded(net, model, edited(adapters, as_lora))


@fault("another update|scale", wrapper="dora")
def magnitudes_missing(net, model, adapters):
    fresh = Net(model, key=jr.key(1)).lora(rank=4, alpha=8, target=TARGETS, wrapper="dora")
    start = extract_adapters(fresh.module)
    name = next(k for k in start.adapters["blocks/0/query"].state if "lora" not in k)

    def reset(path, x):
        return with_state(x, **{name: start.adapters[path].state[name]})

    return loaded(net, model, edited(adapters, reset))


@fault("rows|another update", wrapper="dora")
def magnitudes_of_another_layer(net, model, adapters):
    name = next(k for k in adapters.adapters["blocks/0/query"].state if "lora" not in k)

    def rolled(path, x):
        return with_state(x, **{name: x.state[name][::-1]})

    return loaded(net, model, edited(adapters, rolled))
