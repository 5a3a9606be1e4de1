"""`infer`: the axes of arrays from their uses, and the reasons where there are none."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import pytest

from jno.lora import SelectionError
from jno_lora_arrays import declare, infer

X = jnp.ones((4, 6))
IDS = jnp.array([0, 2])
MASK = jnp.arange(8)[None] > jnp.arange(6)[:, None]


def found(function, **shapes):
    params = {name: jnp.ones(shape) for name, shape in shapes.items()}
    return {row.path: row.axes or row.reason for row in infer(function, params)}


def conv(kernel):
    """Of a kernel `(out, in, places)`."""
    return jax.lax.conv_general_dilated(jnp.ones((2, kernel.shape[1], 9)), kernel, (1,), "SAME")


@jax.custom_vjp
def product(x, w):
    return x @ w


product.defvjp(lambda x, w: (x @ w, (x, w)), lambda kept, g: (g @ kept[1].T, kept[0].T @ g))


def of_modes(w, spec="ki,kio->ko"):
    return jnp.einsum(spec, jnp.ones((2, 6)), w)


ONE_ARRAY = [
    # A table that is also the head has words as inputs.
    (lambda w: w[IDS] @ w.T, (9, 6), "eo"),
    (lambda w: product(X, w), (6, 3), "io"),  # a function with a rule of its own
    (lambda w: X @ jnp.where(MASK, w, 0.0)[::-1], (6, 8), "io"),
    # Sums are products with ones.
    (lambda w: conv(w.sum(2, keepdims=True)), (5, 4, 3), "oii"),
    (lambda w: X @ w.mean(2), (6, 8, 3), "ioi"),
    (lambda w: w.sum(), (6, 8), "not in a product"),
    (lambda w: X + w[:4], (9, 6), "not in a product: added"),
    (lambda w: X * w[None], (6,), "one axis: a bias, or the scale of a norm"),
    # Parts that are joined keep their axes.
    (lambda w: X @ jnp.concatenate([2 * w[:4], w[4:]]), (6, 8), "io"),
    # A list of channels of a kernel is not a stack.
    (lambda w: conv(w[:, IDS]), (5, 4, 3), "oii"),
    (lambda w: conv(w[IDS[0]]), (3, 5, 4, 3), "soii"),
    (lambda w: of_modes(w[IDS], "ni,kio->nko"), (4, 6, 3), "sio"),
    (lambda w: of_modes(w.reshape(6, 6, 3)[IDS]), (2, 3, 6, 3), "ssio"),
    (
        lambda w: (X @ w.reshape(6, 6), jnp.einsum("nab,abc->nc", jnp.ones((4, 6, 2)), w)),
        (6, 2, 3),
        "uses that contradict each other: ioo and iio",
    ),
    (
        lambda w: X @ jnp.concatenate([w, w]).reshape(6, 8)[:, :2],
        (4, 6),
        "not in a product: reshape",
    ),
    (
        lambda w: jnp.einsum("ni,ij->nij", X, w),
        (6, 3),
        "a product that sums over none of its axes (so)",
    ),
    (lambda w: jnp.einsum("ij,ij->", X, w), (4, 6), "a product that keeps none of its axes (ii)"),
]


@pytest.mark.parametrize(("function", "shape", "expected"), ONE_ARRAY)
def test_the_axes_of_one_array(function, shape, expected):
    assert found(lambda p: function(p["w"]), w=shape)["w"] == expected


def test_several_arrays_and_complex_numbers():
    def spectral(p):
        modes = jnp.fft.rfft(X, axis=0)[:2]
        return jnp.einsum("mi,iom->mo", modes, p["real"] + 1j * p["imaginary"]).real

    with jax.numpy_dtype_promotion("standard"):
        rows = found(spectral, real=(6, 5, 2), imaginary=(6, 5, 2))
    assert rows == {"real": "ios", "imaginary": "ios"}
    fused = lambda p: X @ jnp.concatenate([p["q"], jnp.ones((6, 2)), p["k"]], 1)  # noqa: E731
    assert found(fused, q=(6, 8), k=(6, 4)) == {"q": "io", "k": "io"}
    entries = lambda p: X @ jnp.where(MASK, p["a"], p["b"]) + X @ (p["c"] * p["d"])  # noqa: E731
    rows = found(entries, **dict.fromkeys("abcd", (6, 8)))
    assert rows["a"] == "not in a product: select_n"
    assert rows["c"] == rows["d"] == "not in a product: multiplied entry by entry"
    params = {"mask": MASK, "w": jnp.ones((6, 8))}
    axes = infer(lambda p: X @ jnp.where(p["mask"], p["w"], 0.0), params)
    assert (axes.letters, axes.coverage) == ({"w": "io"}, 1.0)


def test_modules_keep_their_layers():
    class Model(eqx.Module):
        layer: eqx.nn.Linear
        bare: jax.Array
        count: jax.Array
        activation: object = jnp.tanh

        def __call__(self, x):
            return self.activation(jax.vmap(self.layer)(x) @ self.bare * self.count)

    model = Model(eqx.nn.Linear(6, 4, key=jr.key(0)), jnp.ones((4, 3)), jnp.array(2))
    with jax.numpy_dtype_promotion("standard"):
        axes = infer(lambda m, x: m(x), model, X)
        of_shapes = infer(lambda m, x: m(x), eqx.filter_eval_shape(lambda: model), X)
    assert axes.letters == {"bare": "io"} and axes.coverage == 1.0
    reasons = {row.path: row.reason for row in axes}
    assert reasons["layer/weight"] == "in a layer that has adapters of its own"
    assert reasons["count"] == "int32: a mask or an index, not a parameter"
    assert of_shapes.rows == axes.rows


def test_nothing_is_computed_and_shapes_suffice():
    params = jax.ShapeDtypeStruct((60_000, 60_000), jnp.float32)
    x = jax.ShapeDtypeStruct((2, 60_000), jnp.float32)
    axes = infer(lambda w, x: x @ w, params, x)
    assert axes.letters == {"": "io"}
    assert "100.0% of the entries" in str(axes)
    assert found(lambda p: jnp.ones((4, 1)) @ p["w"], w=(1, 1))["w"] in ("io", "oi")
    with pytest.raises(SelectionError, match=r"declared already\. Take `plain`"):
        infer(lambda p: X @ p["w"], declare({"w": jnp.ones((6, 8))}, {"w": "io"}))
