"""`ScannedLayers` computes what a loop over the layers computes, adapted or not."""

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest
from tests.core.toys import ToyStacked

from jno.lora import Net, SelectionError, merge_lora
from jno_lora_train import ScannedLayers


class Block(eqx.Module):
    linear: eqx.nn.Linear
    extras: bool = eqx.field(static=True)

    def __init__(self, key, extras=False):
        self.linear = eqx.nn.Linear(4, 4, key=key)
        self.extras = extras

    def __call__(self, x, scale):
        out = x + scale * jnp.tanh(self.linear(x))
        return (out, None, out.sum()) if self.extras else out


def blocks(**options):
    return [Block(key, **options) for key in jax.random.split(jax.random.key(0), 3)]


def loop(layers, x, scale):
    for layer in layers:
        x = layer(x, scale)
    return x


X = jnp.linspace(-1.0, 1.0, 4)


@pytest.mark.parametrize("remat", [True, False, "products"])
def test_it_computes_what_the_loop_computes(remat):
    layers = blocks()
    scanned = ScannedLayers(layers, remat=remat)
    assert jnp.allclose(scanned(X, 0.5), loop(layers, X, 0.5), atol=1e-6)
    gradient = eqx.filter_grad(lambda scanned: scanned(X, 0.5).sum())(scanned)
    expected = eqx.filter_grad(lambda layers: loop(layers, X, 0.5).sum())(layers)
    for found, one in zip(gradient.unstacked(), expected, strict=True):
        assert jnp.allclose(found.linear.weight, one.linear.weight, atol=1e-6)


def kept(layers, remat):
    """The shapes that the gradient by the layers' input keeps."""
    arrays, static = eqx.partition(ScannedLayers(layers, remat=remat), eqx.is_array)
    _, pull = jax.vjp(lambda x: eqx.combine(arrays, static)(x, 0.5), X)
    return [leaf.shape for leaf in jax.tree.leaves(pull)]


class Deeper(Block):
    def __call__(self, x, scale):
        return super().__call__(jnp.sin(super().__call__(x, scale)), scale)


def test_the_gradient_keeps_the_inputs_of_the_layers_or_the_products_of_their_weights():
    layers = [Deeper(key) for key in jax.random.split(jax.random.key(0), 3)]
    sizes = {remat: len(kept(layers, remat)) for remat in (True, False, "products")}
    assert sizes[True] < sizes["products"] < sizes[False]
    # `B (A x)` of an adapter is computed again: it is as large as the output of its layer.
    adapted = Net(layers).freeze().lora(rank=2, wrapper=ToyStacked).module
    shapes = kept(adapted, "products")
    assert shapes.count((3, 4)) == kept(layers, "products").count((3, 4))
    assert shapes.count((3, 2)) == 2


def test_further_outputs_are_stacked_and_layers_come_back():
    layers = blocks()
    assert eqx.tree_equal(ScannedLayers(layers).unstacked(), layers)
    x, none, sums = ScannedLayers(blocks(extras=True))(X, 0.5)
    assert none is None and sums.shape == (3,)
    assert jnp.allclose(sums[-1], x.sum(), atol=1e-6)


def test_adapters_of_a_stack_are_those_of_its_layers():
    net = Net([ScannedLayers(blocks())]).freeze().lora(rank=2, wrapper=ToyStacked)
    trainable, _ = net.partition()
    net.update(jax.tree.map(lambda leaf: leaf + 0.1, trainable))
    (scanned,) = net.module
    layers = scanned.unstacked()
    assert all(isinstance(layer.linear, ToyStacked) for layer in layers)
    assert jnp.allclose(scanned(X, 0.5), loop(layers, X, 0.5), atol=1e-6)
    plain = merge_lora(layers)
    assert jax.tree.structure(plain) == jax.tree.structure(blocks())
    assert jnp.allclose(scanned(X, 0.5), loop(plain, X, 0.5), atol=1e-5)
    assert eqx.tree_equal(ScannedLayers(layers), scanned)


def test_layers_that_differ_are_refused():
    first, *rest = blocks()
    with pytest.raises(SelectionError, match="layer 2 differs from layer 0"):
        ScannedLayers([first, rest[0], eqx.nn.Linear(4, 4, key=jax.random.key(1))])
    with pytest.raises(SelectionError, match="layer 1 differs"):
        ScannedLayers([first, *blocks(extras=True)])
    with pytest.raises(SelectionError, match="\"products\", but is 'everything'"):
        ScannedLayers([first], remat="everything")


def test_a_key_is_split_among_the_layers():
    class Noise(eqx.Module):
        def __call__(self, x, *, key):
            return x + jax.random.normal(key, x.shape)

    layers = [Noise(), Noise()]
    x, key = jnp.zeros(3), jax.random.key(1)
    expected = x
    for layer, own in zip(layers, jax.random.split(key, 2), strict=True):
        expected = layer(expected, key=own)
    scanned = ScannedLayers(layer for layer in layers)
    assert jnp.allclose(scanned(x, key=key), expected)
