"""Random models and masks: deep and odd in structure, but of few shapes.

Compiling takes the time, for each method and form of layer. So every layer is of one of a few
forms, whose numbers come from NumPy. Only their connections are random.
"""

import functools
import os
from collections.abc import Iterable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import HealthCheck, settings, strategies as st

import jno_lora_zoo as zoo

from .odd_nodes import DuckConv, DuckLinear, Node, Pair, Pile, Record

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


def _first_weight(pair):
    return pair[0].weight


def _second_weight(pair):
    return pair[1].weight


def _pair(key):
    one, two = eqx.nn.Linear(4, 3, key=key), eqx.nn.Linear(4, 3, key=key)
    return eqx.nn.Shared((one, two), where=_second_weight, get=_first_weight)


def _linear(key):
    return eqx.nn.Linear(4, 3, key=key)


def _conv(key):
    return eqx.nn.Conv1d(2, 3, 2, key=key)


def _block(key):
    return Node(_linear(key), [_conv(key)], jnp.ones(2), "node")


def _stack(one):
    return lambda key: eqx.filter_vmap(one)(jax.random.split(key, 2))


# Most have a (3, 4) matrix. Every function is one object, so that equal layers have equal forms.
_MAKE = {
    "linear": _linear,
    "no bias": lambda key: eqx.nn.Linear(4, 3, use_bias=False, key=key),
    "conv": _conv,
    "transposed": lambda key: eqx.nn.ConvTranspose1d(2, 3, 2, key=key),
    "stack": _stack(_linear),
    "stack of convs": _stack(_conv),
    "stack of stacks": _stack(_stack(_linear)),
    "stack of containers": _stack(_block),
    "duck": lambda key: DuckLinear(jnp.ones((3, 4)), 4, 3),
    "duck conv": lambda key: DuckConv(jnp.ones((3, 2, 2)), 2, 3, (2,)),
    "embedding": lambda key: eqx.nn.Embedding(3, 4, key=key),
    "attention": lambda key: eqx.nn.MultiheadAttention(2, 4, key=key),
    "cell": lambda key: eqx.nn.GRUCell(2, 2, key=key),
    "norm": lambda key: eqx.nn.LayerNorm(4),
    "weight norm": lambda key: eqx.nn.WeightNorm(_linear(key)),
    "weight norm of a conv": lambda key: eqx.nn.WeightNorm(_conv(key)),
    "tied": _pair,
    "adapted": lambda key: zoo.LoRALinear(_linear(key), 2, 3.0, key=key),
}
# Few layers of each of these, since each is one more form to compile for.
_DTYPES = {
    "bfloat16 linear": jnp.bfloat16,
    "float16 conv": jnp.float16,
    "bfloat16 stack": jnp.bfloat16,
    "float16 embedding": jnp.float16,
    "NumPy linear": np.float32,
    "NumPy conv": np.float32,
    "NumPy float64 linear": np.float64,
}
LAYERS = (*_MAKE, *_DTYPES)
# Another place for what is in the model already: the same object, or a new one of the same arrays.
SHARED = ("again", "same arrays")
# Other values that a model may hold.
_ODD = {"none": None, "number": 3, "function": jax.nn.relu, "text": "text"}


@functools.cache
def _template(kind: str) -> tuple[list[Any], Any]:
    return jax.tree.flatten(eqx.filter_eval_shape(_MAKE[kind], jax.random.key(0)))


def layer(kind: str, rng: np.random.Generator) -> Any:
    """A layer of that kind. NumPy's numbers need no compilation."""
    make = kind.split()[-1] if kind in _DTYPES else kind
    leaves, treedef = _template(make)

    def filled(x: Any) -> Any:
        if not isinstance(x, jax.ShapeDtypeStruct):
            return x
        dtype = _DTYPES.get(kind, x.dtype)
        # Only what float32 can hold: JAX keeps no more of NumPy's float64.
        numbers = np.asarray(rng.normal(size=x.shape), np.float32).astype(dtype)
        return numbers if kind.startswith("NumPy") else jnp.asarray(numbers)

    return treedef.unflatten(map(filled, leaves))


def built(what: Any, rng: np.random.Generator) -> Any:
    """The model that a description (see `models`) means."""
    there: list[Any] = []  # nodes that are finished, for those that are in two places

    def build(what: Any) -> Any:
        if isinstance(what, str) and what in _ODD:
            return _ODD[what]
        if isinstance(what, str) and what in SHARED and there:
            node = there[rng.integers(len(there))]
            return node if what == "again" else jax.tree.map(lambda x: x, node)
        node = (
            layer("linear" if what in SHARED else what, rng)
            if isinstance(what, str)
            else (container(*what))
        )
        there.append(node)
        return node

    def container(kind: str, parts: Any) -> Any:
        if kind == "dict":
            return {name: build(part) for name, part in parts.items()}
        items = [build(part) for part in parts]
        if kind == "node":
            return Node(*items, jnp.asarray(rng.normal(size=2), jnp.float32), "node")
        if kind in ("pair", "record"):
            return {"pair": Pair, "record": Record}[kind](*items)
        return {"list": list, "tuple": tuple, "pile": Pile}[kind](items)

    return build(what)


# No slash: it could make two paths equal, see `test_selection.py`.
KEYS = ["encoder", "head", "layers", "0", "query", "a key", "a.b", "größe", "[x]"]


def _containing(parts: Any) -> Any:
    two = st.tuples(parts, parts)
    return st.one_of(
        st.tuples(st.just("node"), two),
        st.tuples(st.sampled_from(["pair", "record"]), two),
        st.tuples(st.sampled_from(["list", "tuple", "pile"]), st.lists(parts, max_size=3)),
        st.tuples(st.just("dict"), st.dictionaries(st.sampled_from(KEYS), parts, max_size=3)),
        st.tuples(st.just("dict"), st.dictionaries(st.integers(-1, 11), parts, max_size=2)),
    )


def _named(**parts: Any) -> Any:
    return st.tuples(st.just("dict"), st.fixed_dictionaries(parts))


def models(*kinds: str, sure: Iterable[str] = ()) -> Any:
    """Models of layers of these kinds, or of any: `("node", ("linear", ("list", ["conv"])))`.

    - `sure`: there are two layers of these kinds in every model, beside the others.
    """
    for kind in LAYERS:
        # Not inside the strategy: beartype looks at random items, which Hypothesis forbids there.
        _template(kind.split()[-1] if kind in _DTYPES else kind)
    leaves = st.sampled_from([*(kinds or LAYERS), *SHARED, *_ODD])
    described = _containing(st.recursive(leaves, _containing, max_leaves=6))
    sure = sorted(sure)
    if sure:
        one = st.sampled_from(sure)
        described = st.one_of(
            st.tuples(st.just("node"), st.tuples(one, _named(encoder=described, head=one))),
            st.tuples(st.just("list"), st.tuples(described, one, one)),
            _named(encoder=one, head=one, query=described),
        )
    return st.builds(
        lambda what, seed: built(what, np.random.default_rng(seed)), described, st.integers(0, 99)
    )


TARGETS = [
    *("", "encoder", "0", "^head", r"\d$", "left", "right|query", r"left/.*right", "pytree"),
    *("first|second", "a key", r"a\.b", "ö", "^left", "^right", "^0", "^1", "head$", "/encoder"),
]


def masks_of(model: Any) -> Any:
    """Masks for a model: none, a regex, or a bool for each leaf."""
    leaves, treedef = jax.tree.flatten(model)
    bools = st.lists(st.booleans(), min_size=len(leaves), max_size=len(leaves))
    return st.one_of(st.none(), st.sampled_from(TARGETS), bools.map(treedef.unflatten))
