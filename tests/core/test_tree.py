"""Layers by path: found, told apart, and replaced, in one walk each."""

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest

from jno.lora import Net, SelectionError, apply_lora
from jno.lora._paths import stable_hash
from jno.lora._tree import layers_at, norms_around
from jno.lora.extending import callable_for

from .toys import ToyLinear

KEYS = jax.random.split(jax.random.key(0), 3)
ONE, TWO, THREE = (eqx.nn.Linear(2, 2, key=key) for key in KEYS)

pytestmark = pytest.mark.usefixtures("registry")


class Block(eqx.Module):
    inner: eqx.nn.Linear
    scale: jax.Array


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


def test_the_outermost_norm_around_a_layer_is_named():
    block = Block(eqx.nn.WeightNorm(ONE), jnp.ones((2, 2)))
    model = {"norm": eqx.nn.WeightNorm(block, weight_name="scale"), "a": TWO}
    inner = "norm/layer/inner/layer"
    assert norms_around(model, [inner, "a"]) == {inner: "norm"}


def test_layers_at_paths_are_plain_or_adapted_and_two_of_one_path_are_refused():
    plain = {"a": ONE, "b": {"c": TWO}}
    model = apply_lora(plain, 1, key=KEYS[0], wrapper=ToyLinear, target="a")
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


def test_the_hash_of_a_path_is_the_same_in_every_process_and_release_and_fits_32_bits():
    # Changing these would change the initial values of every adapter.
    assert stable_hash("") == 0x25CF7112
    assert stable_hash("encoder/0") == 0x9A5049DF
    paths = [f"decoder/layers/{i}/{part}" for i in range(100) for part in "qkvo"]
    hashes = {stable_hash(path) for path in paths}
    assert len(hashes) == len(paths) and all(0 <= number < 2**32 for number in hashes)
