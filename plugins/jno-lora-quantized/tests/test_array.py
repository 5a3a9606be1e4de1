"""A quantised weight reads like the weight, and nothing changes it."""

import math
import re

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest
from jax.experimental.jet import jet
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jno.lora import apply_lora, lora_trainable_filter
from jno_lora_quantized import QuantizedArray, dequantize, quantize
from jno_lora_quantized._array import _encode
from jno_lora_quantized._schemes import scheme_named

INDICES = (
    *(3, -1, jnp.asarray(4), jnp.asarray([1, -2, 8]), np.asarray([[0, 1], [2, 3]])),
    *(slice(1, 4), (2, 5), np.arange(9) > 4, jnp.asarray([99, -99])),
)


def close(got, expected, tolerance=1e-5):
    np.testing.assert_allclose(got, expected, rtol=tolerance, atol=tolerance)


def linear(getkey, scheme, inputs=70, outputs=9):
    return quantize(eqx.nn.Linear(inputs, outputs, key=getkey()), scheme)


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["nf4", "int8"])
def test_reads_like_the_weight(getkey, scheme):
    weight = linear(getkey, scheme).weight
    W = weight.decoded()
    assert isinstance(weight, QuantizedArray)
    assert (weight.shape, weight.ndim, weight.size, len(weight)) == ((9, 70), 2, 630, 9)
    assert weight.dtype == W.dtype == jnp.float32
    x, y = jr.normal(getkey(), (70, 3)), jr.normal(getkey(), (2, 9))
    close(weight @ x, W @ x)
    close(weight @ x[:, 0], W @ x[:, 0])
    close(y @ weight, y @ W)
    close(weight.__rmatmul__(y), y @ W)
    assert jax.jit(lambda x: x @ weight)(jnp.ones((0, 9))).shape == (0, 70)
    close(jnp.asarray(weight), W)
    close(jnp.add(W, weight), W + W)
    close(weight.T, W.T)
    for index in INDICES:
        close(weight[index], W[index], 1e-6)
    np.testing.assert_array_equal(jnp.stack(list(weight)), W)
    np.testing.assert_array_equal(weight.reshape(-1, 10), W.reshape(-1, 10))
    pairs = ((weight + 1, W + 1), (1 - weight, 1 - W), (2 * weight, 2 * W), (weight / 3, W / 3))
    for got, expected in (*pairs, (-weight, -W), (weight**2, W**2), (W * weight, W * W)):
        close(got, expected, 1e-6)
    with jax.numpy_dtype_promotion("standard"):
        for x in (jnp.arange(70), jnp.ones(70, complex)):
            close(jax.jit(lambda x: weight @ x)(x), W @ x, 1e-4)


def on_mesh(kind):
    return jax.make_mesh((2,), ("d",), axis_types=(kind,), devices=jax.devices()[:2])


def test_under_shard_map(getkey):
    layer, xs, scale = linear(getkey, "int8", 6, 6), jr.normal(getkey(), (4, 6)), jnp.ones(6)
    mesh = on_mesh(AxisType.Auto)

    def slope(layer):
        def loss(scale, xs):
            mean = jnp.mean(jnp.sin(jax.vmap(layer)(xs * scale[None])))
            return jax.lax.pmean(mean, "d")

        specs = (PartitionSpec(), PartitionSpec("d"))
        whole = jax.shard_map(loss, mesh=mesh, in_specs=specs, out_specs=PartitionSpec())
        return jax.jit(jax.grad(whole))(scale, xs)

    close(slope(layer), slope(dequantize(layer)))


@pytest.mark.slow
def test_on_explicit_axes(getkey):
    mesh = on_mesh(AxisType.Explicit)
    layer = quantize(eqx.nn.Linear(64, 6, use_bias=False, key=getkey()))
    placed = jax.tree.map(
        lambda leaf: jax.device_put(leaf, NamedSharding(mesh, PartitionSpec())), layer
    )
    xs = jax.device_put(jr.normal(getkey(), (4, 64)), NamedSharding(mesh, PartitionSpec("d", None)))
    with jax.set_mesh(mesh):
        y = jax.jit(jax.vmap(placed))(xs)
        slope = jax.jit(jax.grad(lambda xs: jnp.sum(jnp.sin(jax.vmap(placed)(xs)))))(xs)
    assert y.sharding.spec == slope.sharding.spec == PartitionSpec("d", None)
    close(y, jax.vmap(dequantize(layer))(np.asarray(xs)))


def test_another_dtype_keeps_the_codes(getkey):
    weight = linear(getkey, "nf4").weight
    half = weight.astype(jnp.bfloat16)
    assert half.codes is weight.codes and half.dtype == jnp.bfloat16
    assert (half @ jnp.ones(70, jnp.bfloat16)).dtype == jnp.bfloat16
    np.testing.assert_array_equal(half.decoded(), weight.decoded().astype(jnp.bfloat16))
    with pytest.raises(TypeError, match="floating"):
        weight.astype(jnp.int8)


def test_nothing_changes_the_codes(getkey):
    layer = linear(getkey, "nf4")
    assert jax.tree.leaves(eqx.filter(layer.weight, eqx.is_inexact_array)) == []
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16) if eqx.is_inexact_array(x) else x, layer)
    assert half.weight == layer.weight
    params, static = eqx.partition(layer, eqx.is_inexact_array)
    optimiser = optax.sgd(0.1)
    gradients = jax.grad(lambda p: jnp.sum(eqx.combine(p, static)(jnp.ones(70))))(params)
    updates, _ = optimiser.update(gradients, optimiser.init(params), params)
    moved = eqx.combine(eqx.apply_updates(params, updates), static)
    assert moved.weight == layer.weight and not jnp.array_equal(moved.bias, layer.bias)


def test_derivatives_of_every_order(getkey):
    layer = linear(getkey, "int8", 3, 3)
    plain, x, v = dequantize(layer), jr.normal(getkey(), (3,)), jr.normal(getkey(), (3,))

    def energy(layer, x):
        return jnp.sum(jnp.tanh(layer(jnp.sin(layer(x)))))

    close(jax.hessian(energy, 1)(layer, x), jax.hessian(energy, 1)(plain, x))
    third = [
        jax.jacfwd(jax.jacrev(jax.grad(lambda x, m=m: energy(m, x))))(x) for m in (layer, plain)
    ]
    close(*third)
    terms = [jet(lambda x, m=m: energy(m, x), (x,), ([v, x, v],)) for m in (layer, plain)]
    jax.tree.map(close, *terms)


def test_transformations(getkey):
    layer = linear(getkey, "nf4", 5, 5)
    plain, xs = dequantize(layer), jr.normal(getkey(), (4, 5))

    def loss(layer, xs):
        return jnp.sum(jax.vmap(lambda x: layer(jnp.cos(layer(x))))(xs) ** 2)

    for transform in (
        lambda f: f,
        eqx.filter_jit,
        lambda f: jax.grad(f, 1),
        lambda f: eqx.filter_jit(jax.grad(f, 1)),
        lambda f: lambda layer, xs: jax.vmap(jax.grad(f, 1), (None, 1))(layer, xs[..., None, :]),
        lambda f: lambda layer, xs: jax.grad(jax.checkpoint(lambda xs: f(layer, xs)))(xs),
    ):
        close(transform(loss)(layer, xs), transform(loss)(plain, xs))
    close(jax.vmap(layer, 1, 1)(xs.T), jax.vmap(plain, 1, 1)(xs.T))
    assert eqx.filter_jit(loss)(layer, xs[:0]) == 0
    # A NaN stays where it is.
    ys = jax.jit(jax.vmap(layer))(xs.at[0, 0].set(jnp.nan))
    assert jnp.isnan(ys[0]).all()
    close(ys[1], layer(xs[1]))


@pytest.mark.slow
def test_stacks(getkey):
    scheme, make = "nf4", eqx.filter_vmap(lambda key: eqx.nn.Linear(6, 6, key=key))
    stack = quantize(make(jr.split(getkey(), 3)), scheme)
    plain, x = dequantize(stack), jr.normal(getkey(), (6,))
    assert stack.weight.shape == (3, 6, 6)

    def run(stack, x):
        dynamic, static = eqx.partition(stack, eqx.is_array)
        return jax.lax.scan(lambda h, one: (eqx.combine(one, static)(h), None), x, dynamic)[0]

    close(run(stack, x), run(plain, x))
    close(jax.jacrev(run, 1)(stack, x), jax.jacrev(run, 1)(plain, x))
    close(eqx.filter_vmap(lambda m: m(x))(stack), eqx.filter_vmap(lambda m: m(x))(plain))
    one = quantize(jax.tree.map(lambda leaf: leaf[1], make(jr.split(jr.key(1), 3))), scheme)
    again = quantize(make(jr.split(jr.key(1), 3)), scheme)
    close(again.weight.decoded()[1], one.weight.decoded(), 1e-6)
    close(stack.weight[1], plain.weight[1])


def test_row_products(getkey):
    weight = linear(getkey, "nf4", 3000, 50).weight  # three blocks of rows
    W, A = weight.decoded(), jr.normal(getkey(), (4, 3000))
    products, squares = weight.row_products(A)
    np.testing.assert_allclose(products, W @ A.T, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(squares, jnp.sum(W * W, axis=1), rtol=1e-5)


# --- memory: the backward pass keeps codes, as the compiled step shows

SIZE, DEPTH, BATCH = 256, 6, 8


def compiled_step(model, wrapper):
    adapted = apply_lora(model, 4, key=jr.key(1), wrapper=wrapper)
    trained, frozen = eqx.partition(adapted, lora_trainable_filter(adapted))
    arrays, static = eqx.partition(frozen, eqx.is_array)

    def step(trained, arrays, x):
        def loss(trained):
            return jnp.mean(jax.vmap(eqx.combine(trained, arrays, static))(x) ** 2)

        return jax.tree.map(lambda a, g: a - 0.1 * g, trained, jax.grad(loss)(trained))

    return jax.jit(step).lower(trained, arrays, jnp.ones((BATCH, SIZE))).compile()


def layers(depth):
    return [
        part
        for key in jr.split(jr.key(0), depth)
        for part in (eqx.nn.Linear(SIZE, SIZE, key=key), eqx.nn.Lambda(jnp.tanh))
    ]


@pytest.mark.parametrize(("wrapper", "scheme"), [("lora", "nf4"), ("dora", "int8")])
def test_one_decoded_weight_at_a_time(wrapper, scheme):
    model = eqx.nn.Sequential(layers(DEPTH))
    plain, coded = (
        compiled_step(m, wrapper).memory_analysis().temp_size_in_bytes
        for m in (model, quantize(model, scheme))
    )
    assert coded <= plain + 1.1 * SIZE * SIZE * 4


def test_no_copy_of_the_whole_model():
    few, many = (
        compiled_step(quantize(eqx.nn.Sequential(layers(depth))), "lora") for depth in (2, DEPTH)
    )
    # A layer more keeps its input and what its adapter needs, and no decoded weight.
    grown = many.memory_analysis().temp_size_in_bytes - few.memory_analysis().temp_size_in_bytes
    assert grown <= 4 * 0.25 * SIZE * SIZE * 4
    # No array of the program has the numbers of two weights, or the shape of a stack of them.
    shapes = re.findall(r"(?:f32|bf16|f16)\[([0-9,]+)\]", many.as_text())
    sizes = [math.prod(map(int, shape.split(","))) for shape in shapes]
    assert SIZE * SIZE <= max(sizes) < 2 * SIZE * SIZE


def test_encoding_holds_no_copies():
    # One scaled copy, and codes before two of them share a byte.
    matrix = jax.ShapeDtypeStruct((256, 256), jnp.float32)
    for scheme in ("nf4", "int8"):
        compiled = _encode.lower(matrix, scheme=scheme_named(scheme)).compile()
        assert compiled.memory_analysis().temp_size_in_bytes <= 1.3 * 256 * 256 * 4
