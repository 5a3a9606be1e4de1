"""Layers by path: found, told apart, and replaced, in one walk each."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import pytest

from jno.lora import Net, SelectionError, apply_lora
from jno.lora._merge import plain_layer
from jno.lora._paths import path_str
from jno.lora._tree import (
    adapted_layers,
    layers_at,
    map_adapters,
    modules_by_path,
    modules_in,
    norms_around,
    replace_layers,
)
from jno.lora.extending import callable_for

from .toys import ToyLinear

KEYS = jax.random.split(jax.random.key(0), 3)
ONE, TWO, THREE = (eqx.nn.Linear(2, 2, key=key) for key in KEYS)

pytestmark = pytest.mark.usefixtures("registry")


class Block(eqx.Module):
    inner: eqx.nn.Linear
    scale: jax.Array


BLOCK = Block(THREE, jnp.ones(()))


class Registered(eqx.Module):
    """A layer that says how a `Net` calls a model that holds it."""

    weight: jax.Array
    in_features: int = 2
    out_features: int = 2


class ToyRegistered(ToyLinear):
    @classmethod
    def applies_to(cls, leaf):
        return isinstance(leaf, Registered)


@callable_for.register(Registered)
def _(layer, model):
    return (lambda x: x @ layer.weight) if isinstance(model, dict) else None


def adapted(model, target):
    return apply_lora(model, 1, key=KEYS[0], wrapper=ToyLinear, target=target)


def paths_in(*args, **kwargs):
    return [path_str(keys) for keys, _ in modules_in(*args, **kwargs)]


def test_modules_are_listed_from_the_outside_in_and_adapters_are_not_entered():
    model = {"a": ONE, "block": BLOCK, "number": 1.0}
    assert paths_in(model) == ["a", "block", "block/inner"]
    assert list(modules_by_path(adapted(model, "inner"))) == ["a", "block", "block/inner"]
    assert [node for _, node in modules_in(BLOCK)] == [BLOCK, THREE]
    # The paths of a part may begin at the root of the model.
    assert paths_in(BLOCK, (jtu.DictKey("block"),)) == ["block", "block/inner"]


def test_norms_below_the_tree_are_entered_on_request_and_the_outermost_is_named():
    norm = eqx.nn.WeightNorm(ONE)
    assert paths_in([norm]) == ["0", "0/layer"]
    assert paths_in([norm], enter_norms=False) == ["0"]
    assert paths_in(norm, enter_norms=False) == ["", "layer"]
    block = Block(norm, jnp.ones((2, 2)))
    model = {"norm": eqx.nn.WeightNorm(block, weight_name="scale"), "a": TWO}
    inner = "norm/layer/inner/layer"
    assert norms_around(model, [inner, "a"]) == {inner: "norm"}


def test_adapters_are_listed_with_the_nodes_of_other_trees():
    plain = {"a": ONE, "b": TWO, "c": jnp.zeros(3)}
    model = adapted(plain, "a|b")
    found = list(adapted_layers(model, plain, {"a": 1, "b": [2], "c": 3}))
    assert found == [("a", model["a"], ONE, 1), ("b", model["b"], TWO, [2])]


def test_mapped_adapters_are_replaced_and_the_rest_is_that_of_the_last_tree():
    model = adapted({"a": 1, "b": TWO}, "b")
    assert map_adapters(lambda path, adapter: (path, adapter.rank), model) == {
        "a": 1,
        "b": ("b", 1),
    }
    others = {"a": "kept", "b": "given"}
    mapped = map_adapters(lambda path, _, other: path + other, model, others)
    assert mapped == {"a": "kept", "b": "bgiven"}


def test_layers_are_replaced_by_path_and_other_adapters_stay():
    plain = {"a": ONE, "b": TWO, "c/d": jnp.zeros(3)}
    model = adapted(plain, "a|b")
    kept = replace_layers(model, {"a": THREE, "c/d": THREE})
    assert kept["a"] is THREE and kept["b"] is model["b"] and kept["c/d"] is model["c/d"]
    assert eqx.tree_equal(plain_layer(kept["b"]), TWO)


def test_layers_at_paths_are_plain_or_adapted_and_two_of_one_path_are_refused():
    model = adapted({"a": ONE, "b": {"c": TWO}}, "a")
    assert layers_at(model, ["a", "b/c", "d"]) == {"a": model["a"], "b/c": TWO}
    with pytest.raises(SelectionError, match="Two layers have the path 'b/c'"):
        layers_at({**model, "b/c": ONE}, ["b/c"])


def test_a_net_calls_what_a_registered_layer_gives():
    layer = Registered(jnp.ones((2, 2)))
    net = Net({"first": ONE, "layer": layer})
    assert jnp.array_equal(net(jnp.ones(2)), jnp.full(2, 2.0))
    # It sees a layer in an adapter, and may leave the call to the model.
    net.lora(1, wrapper=ToyRegistered)
    assert jnp.array_equal(net(jnp.ones(2)), jnp.full(2, 2.0))
    with pytest.raises(SelectionError, match="a list, which cannot be called"):
        Net([layer])(jnp.ones(2))
