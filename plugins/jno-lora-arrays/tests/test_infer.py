"""`infer`: the axes of arrays from their uses, and the reasons where there are none."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import pytest

from jno.lora import SelectionError
from jno_lora_arrays import declare, infer

X = jnp.ones((4, 6))


def found(function, **shapes):
    params = {name: jnp.ones(shape) for name, shape in shapes.items()}
    return {row.path: row.axes or row.reason for row in infer(function, params)}


def test_arrays_that_are_no_product_say_why():
    rows = found(
        lambda p: (
            (X @ p["kernel"] + p["bias"][None]) * p["scale"][None]
            + p["positions"][:4]
            + X @ (p["masked"] * p["mask"])
        ),
        kernel=(6, 8),
        bias=(8,),
        scale=(8,),
        positions=(9, 8),
        masked=(6, 8),
        mask=(6, 8),
        unused=(3, 3),
    )
    assert rows == {
        "bias": "one axis: a bias, or the scale of a norm",
        "kernel": "io",
        "mask": "not in a product: multiplied entry by entry",
        "masked": "not in a product: multiplied entry by entry",
        "positions": "not in a product: added",
        "scale": "one axis: a bias, or the scale of a norm",
        "unused": "not in a product",
    }


def test_complex_arrays_are_inferred_like_real_arrays():
    modes = jnp.ones((3, 2), jnp.complex64)
    (row,) = infer(lambda p: jnp.ones(3, jnp.complex64) @ p["modes"], {"modes": modes})
    assert (row.axes, row.reason) == ("io", None)


def test_contradictions_are_shown():
    rows = found(
        lambda p: (
            X @ p["w"].reshape(6, 6),
            jnp.einsum("nab,abc->nc", jnp.ones((4, 6, 2)), p["w"]),
        ),
        w=(6, 2, 3),
    )
    assert rows == {"w": "uses that contradict each other: ioo and iio"}
    rows = found(lambda p: X @ jnp.concatenate([p["w"], p["w"]]).reshape(6, 8)[:, :2], w=(4, 6))
    assert rows["w"].startswith("not in a product: reshape")


def test_products_without_inputs_or_outputs():
    rows = found(
        lambda p: (jnp.einsum("ni,ij->nij", X, p["a"]), jnp.einsum("ij,ij->", X, p["b"])),
        a=(6, 3),
        b=(4, 6),
    )
    assert rows["a"] == "a product that sums over none of its axes (so)"
    assert rows["b"] == "a product that keeps none of its axes (ii)"


def test_a_table_that_is_also_the_head_has_words_as_inputs():
    def function(p):
        return p["table"][jnp.array([0, 2])] @ p["table"].T

    assert found(function, table=(9, 6)) == {"table": "eo"}
    swapped = lambda p: (X @ p["table"].T, p["table"][jnp.array([0, 2])])  # noqa: E731
    assert found(swapped, table=(9, 6)) == {"table": "eo"}


def test_complex_pairs_and_real_transforms():
    def function(p):
        modes = jnp.fft.rfft(X, axis=0)[:2]
        weight = p["real"] + 1j * p["imaginary"]
        return jnp.einsum("mi,iom->mo", modes, weight).real

    with jax.numpy_dtype_promotion("standard"):
        rows = found(function, real=(6, 5, 2), imaginary=(6, 5, 2))
    assert rows == {"real": "ios", "imaginary": "ios"}


def test_functions_with_rules_of_their_own_are_looked_into():
    @jax.custom_vjp
    def product(x, w):
        return x @ w

    product.defvjp(lambda x, w: (x @ w, (x, w)), lambda kept, g: (g @ kept[1].T, kept[0].T @ g))
    assert found(lambda p: product(X, p["w"]), w=(6, 3)) == {"w": "io"}


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
    assert axes.letters == {"bare": "io"}
    reasons = {row.path: row.reason for row in axes}
    assert reasons["layer/weight"] == "in a layer that has adapters of its own"
    assert reasons["count"] == "int32: a mask or an index, not a parameter"
    assert axes.coverage == 1.0
    with jax.numpy_dtype_promotion("standard"):
        of_shapes = infer(lambda m, x: m(x), eqx.filter_eval_shape(lambda: model), X)
    assert of_shapes.rows == axes.rows


def test_masked_weights_have_axes():
    mask = jnp.arange(8)[None] > jnp.arange(6)[:, None]
    assert found(lambda p: X @ jnp.where(mask, p["w"], 0.0)[::-1], w=(6, 8)) == {"w": "io"}
    params = {"mask": mask, "w": jnp.ones((6, 8))}
    axes = infer(lambda p: X @ jnp.where(p["mask"], p["w"], 0.0), params)
    assert (axes.letters, axes.coverage) == ({"w": "io"}, 1.0)
    rows = found(lambda p: X @ jnp.where(mask, p["v"], p["w"]), v=(6, 8), w=(6, 8))
    assert rows["v"] == "not in a product: select_n"


def conv(kernel):
    """Of a kernel `(out, in, places)`."""
    return jax.lax.conv_general_dilated(jnp.ones((2, kernel.shape[1], 9)), kernel, (1,), "SAME")


def test_sums_are_products_with_ones():
    assert found(lambda p: conv(p["k"].sum(2, keepdims=True)), k=(5, 4, 3)) == {"k": "oii"}
    assert found(lambda p: X @ p["w"].mean(2), w=(6, 8, 3)) == {"w": "ioi"}
    assert found(lambda p: X[0] @ p["w"].sum(1), w=(6, 8)) == {"w": "io"}
    assert found(lambda p: p["w"].sum(), w=(6, 8)) == {"w": "not in a product"}


def test_parts_that_are_joined_keep_their_axes():
    def scaled(p):
        return X @ jnp.concatenate([2 * p["w"][:4], p["w"][4:]])

    assert found(scaled, w=(6, 8)) == {"w": "io"}
    fused = lambda p: X @ jnp.concatenate([p["q"], jnp.ones((6, 2)), p["k"]], 1)  # noqa: E731
    assert found(fused, q=(6, 8), k=(6, 4)) == {"q": "io", "k": "io"}


def test_a_list_of_channels_of_a_kernel_is_not_taken_for_a_stack():
    some = jnp.array([2, 0])
    assert found(lambda p: conv(p["k"][:, some]), k=(5, 4, 3)) == {"k": "oii"}
    assert found(lambda p: conv(p["k"][some]), k=(5, 4, 3)) == {"k": "oii"}
    for spec in ("ni,kio->nko", "ki,kio->ko"):
        x = jnp.ones((2, 6))
        product = lambda p, spec=spec, x=x: jnp.einsum(spec, x, p["w"][some])  # noqa: E731
        assert found(product, w=(4, 6, 3)) == {"w": "sio"}
    assert found(lambda p: conv(p["k"][some[0]]), k=(3, 5, 4, 3)) == {"k": "soii"}
    of_two = lambda p: jnp.einsum("ki,kio->ko", x, p["w"].reshape(6, 6, 3)[some])  # noqa: E731
    assert found(of_two, w=(2, 3, 6, 3)) == {"w": "ssio"}


def test_declared_arrays_are_refused():
    with pytest.raises(SelectionError, match=r"declared already\. Take `plain`"):
        infer(lambda p: X @ p["w"], declare({"w": jnp.ones((6, 8))}, {"w": "io"}))


def test_nothing_is_computed_and_shapes_suffice():
    params = jax.ShapeDtypeStruct((60_000, 60_000), jnp.float32)
    x = jax.ShapeDtypeStruct((2, 60_000), jnp.float32)
    axes = infer(lambda w, x: x @ w, params, x)
    assert axes.letters == {"": "io"}
    assert "100.0% of the entries" in str(axes)


@pytest.mark.parametrize("shape", [(1, 8), (6, 1), (1, 1)])
def test_axes_of_size_one(shape):
    x = jnp.ones((4, shape[0]))
    assert found(lambda p: x @ p["w"], w=shape)["w"] in ("io", "oi")
