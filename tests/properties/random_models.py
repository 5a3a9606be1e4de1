"""Random models, masks and specs: deep and odd in structure, but of few shapes.

What costs time is compiling, for each method and form of layer. So every layer is of one of a few
forms, whose numbers come from NumPy, and what is random is how they hang together.
"""

import functools
import os
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import HealthCheck, settings, strategies as st

import jno_lora_zoo as zoo
from jno.lora import LoRAWrapper

# To search for longer: JNO_LORA_SEARCH=20 makes twenty times the examples, others in each run.
SEARCH = int(os.environ.get("JNO_LORA_SEARCH", "1"))


def examples(number: int) -> settings:
    """The settings of a property that is tried on so many examples, the same ones in every run."""
    return settings(
        max_examples=number * SEARCH,
        derandomize=SEARCH == 1,
        deadline=None,  # the first example of a form compiles it
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
    )


METHODS = (
    *("LoRA", "rsLoRA", "LoRAFA", "DoRA", "PiSSA", "LoRAXS"),
    *("VeRA", "MiLoRA", "IA3", "LoKr", "OFT"),
)


def adapters_of(method: str) -> list[type[LoRAWrapper]]:
    """The adapters of a method for linear layers and convolutions."""
    return [getattr(zoo, f"{method}Linear"), getattr(zoo, f"{method}Conv")]


class Node(eqx.Module):
    """A container with an array of its own, which an adapter may claim as a whole."""

    left: Any
    right: Any
    scale: jax.Array
    name: str = eqx.field(static=True)


class DuckLinear(eqx.Module):
    """Somebody's own linear layer."""

    weight: jax.Array
    in_features: int = eqx.field(static=True)
    out_features: int = eqx.field(static=True)

    def __call__(self, x):
        return self.weight @ x


class NodeAdapter(LoRAWrapper):
    """An adapter of a container, which hides the layers inside from nobody who comes first."""

    adapter_fields = ("shift",)
    base: Node
    shift: jax.Array
    rank: int = eqx.field(static=True)
    alpha: float = eqx.field(static=True)

    @classmethod
    def applies_to(cls, leaf) -> bool:
        return type(leaf) is Node

    def __init__(self, base, rank, alpha, *, key):
        self.base, self.rank, self.alpha = base, rank, alpha
        self.shift = jnp.zeros_like(base.scale)

    def __call__(self, x):
        return x

    def merge(self):
        return eqx.tree_at(lambda n: n.scale, self.base, self.base.scale + self.shift)


class EmbeddingAdapter(LoRAWrapper):
    """A plugin's adapter, for layers that the zoo has none for."""

    adapter_fields = ("delta",)
    base: eqx.nn.Embedding
    delta: jax.Array
    rank: int = eqx.field(static=True)
    alpha: float = eqx.field(static=True)

    @classmethod
    def applies_to(cls, leaf) -> bool:
        return type(leaf) is eqx.nn.Embedding

    def __init__(self, base, rank, alpha, *, key):
        self.base, self.rank, self.alpha = base, rank, alpha
        self.delta = jax.random.normal(key, base.weight.shape)

    def __call__(self, x):
        return self.base(x) + self.delta[x]

    def merge(self):
        return eqx.tree_at(lambda e: e.weight, self.base, self.base.weight + self.delta)


def _first_weight(pair):
    return pair[0].weight


def _second_weight(pair):
    return pair[1].weight


def _pair(key):
    one, two = eqx.nn.Linear(4, 3, key=key), eqx.nn.Linear(4, 3, key=key)
    return eqx.nn.Shared((one, two), where=_second_weight, get=_first_weight)


# Most have a (3, 4) matrix. Every function is one object, so that equal layers have equal forms.
_MAKE = {
    "linear": lambda key: eqx.nn.Linear(4, 3, key=key),
    "no bias": lambda key: eqx.nn.Linear(4, 3, use_bias=False, key=key),
    "conv": lambda key: eqx.nn.Conv1d(2, 3, 2, key=key),
    "stack": lambda key: eqx.filter_vmap(lambda k: eqx.nn.Linear(4, 3, key=k))(
        jax.random.split(key, 2)
    ),
    "duck": lambda key: DuckLinear(jnp.ones((3, 4)), 4, 3),
    "embedding": lambda key: eqx.nn.Embedding(3, 4, key=key),
    "norm": lambda key: eqx.nn.LayerNorm(4),
    "weight norm": lambda key: eqx.nn.WeightNorm(eqx.nn.Linear(4, 3, key=key)),
    "tied": _pair,
    "adapted": lambda key: zoo.LoRALinear(eqx.nn.Linear(4, 3, key=key), 2, 3.0, key=key),
}
LAYERS = tuple(_MAKE)
# What else a model may hold.
_ODD = {"none": None, "number": 3, "function": jax.nn.relu, "text": "text"}


@functools.cache
def _template(kind: str) -> tuple[list[Any], Any]:
    return jax.tree.flatten(eqx.filter_eval_shape(_MAKE[kind], jax.random.key(0)))


def layer(kind: str, rng: np.random.Generator) -> Any:
    """A layer of that kind. NumPy's numbers need no compilation."""
    leaves, treedef = _template(kind)
    return treedef.unflatten(
        jnp.asarray(rng.normal(size=x.shape), x.dtype) if isinstance(x, jax.ShapeDtypeStruct) else x
        for x in leaves
    )


def _built(what: Any, rng: np.random.Generator) -> Any:
    """The model that a description (see `models`) means."""
    if isinstance(what, str):
        return _ODD[what] if what in _ODD else layer(what, rng)
    kind, parts = what
    if kind == "node":
        left, right = (_built(part, rng) for part in parts)
        return Node(left, right, jnp.asarray(rng.normal(size=2), jnp.float32), "node")
    if kind == "dict":
        return {name: _built(part, rng) for name, part in parts.items()}
    return {"list": list, "tuple": tuple}[kind](_built(part, rng) for part in parts)


def _containing(parts: Any) -> Any:
    names = st.sampled_from(["encoder", "head", "layers", "0", "query"])
    return st.one_of(
        st.tuples(st.just("node"), st.tuples(parts, parts)),
        st.tuples(st.just("list"), st.lists(parts, max_size=3)),
        st.tuples(st.just("tuple"), st.lists(parts, max_size=3)),
        st.tuples(st.just("dict"), st.dictionaries(names, parts, max_size=3)),
    )


def models(*kinds: str) -> Any:
    """Models of layers of these kinds, or of any: `("node", ("linear", ("list", ["conv"])))`."""
    for kind in kinds or LAYERS:
        # Not inside the strategy: beartype looks at random items, which Hypothesis forbids there.
        _template(kind)
    leaves = st.sampled_from([*(kinds or LAYERS), *_ODD])
    described = _containing(st.recursive(leaves, _containing, max_leaves=6))
    return st.builds(
        lambda what, seed: _built(what, np.random.default_rng(seed)),
        described,
        st.integers(0, 99),
    )


TARGETS = ["", "encoder", "0", "^head", r"\d$", "left", "right|query", r"left/.*right", "pytree"]


def masks_of(model: Any) -> Any:
    """Masks for a model: none, a regex, or a bool for each leaf."""
    leaves, treedef = jax.tree.flatten(model)
    bools = st.lists(st.booleans(), min_size=len(leaves), max_size=len(leaves))
    return st.one_of(st.none(), st.sampled_from(TARGETS), bools.map(treedef.unflatten))
