"""Each rule, for a law that is `W + B A` (LoRA) and one that is not (DoRA): values and gradients.

The function and the merged weight are the reference. `RULES` says which methods compute all uses
themselves; the others must be equal too, and are told.
"""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import pytest
from jax import lax
from jax.experimental import pallas
from jax.sharding import PartitionSpec as P

from jno.lora import JnoLoraError, apply_lora, lora_trainable_filter
from jno_lora_arrays import DeclaredArray, infer, plain, report_uses, through

X = jr.normal(jr.key(0), (4, 6))
IMAGES = jr.normal(jr.key(1), (2, 5, 6))
NWC = ("NWC", "WIO", "NWC")
ALL, LOW = ("lora", "dora"), ("lora",)
RULES, CASES = {}, []


def rule(shape, axes, methods=ALL, tested=ALL):
    """A function of a weight with these axes.

    - `methods`: those that compute each use. A convolution by a kernel that is not a sum is
        merged.
    - `tested`: without DoRA where the rule is one for all views.
    """

    def register(function):
        name = function.__name__
        RULES[name] = (function, shape, axes)
        CASES.extend(pytest.param(name, one, one in methods, id=f"{name}-{one}") for one in tested)
        return function

    return register


@rule((6, 8), "io")
def views(w):
    y = X @ w.T[None].reshape(2, 4, 6).transpose(2, 0, 1).reshape(6, 8)
    y += X @ jnp.squeeze(jnp.expand_dims(w, 1), 1)
    return y, (X @ w) @ w.T, jnp.einsum("io,no->in", w, X @ w)


@rule((2, 6, 4), "oio")
def reshapes_that_transpose(w):
    return X @ lax.reshape(w, (6, 8), dimensions=(1, 0, 2))


@rule((6, 2, 4), "ioo")
def heads_of_outputs(w):
    joined = X @ w.reshape(6, 8)
    return (
        jnp.einsum("ni,ihd->hnd", X, w),
        joined,
        jnp.einsum("hid,ni->nhd", w.transpose(1, 0, 2), X),
    )


@rule((2, 3, 8), "iio")
def heads_of_inputs(w):
    x = X.reshape(4, 2, 3)
    return jnp.einsum("nhd,hdo->on", x, w), jnp.einsum("ndh,hdo->no", x.transpose(0, 2, 1), w)


@rule((2, 3, 8), "iio", LOW)
def one_of_several_inputs_is_shared(w):
    return jnp.einsum("nhd,hdo->nho", X.reshape(4, 2, 3), w)


@rule((6, 8), "io", tested=LOW)
def multiples_and_sums_of_views(w):
    products = X @ (-w * 3.0 / 2.0), (jnp.sum(X) * w).T @ X.T, X @ -(2.0 * w)
    return products, X @ (w + 2.0 * w - w.reshape(6, 8)), X @ (w - 3.0 * w)


@rule((6, 8), "io")
def casts(w):
    return (X.astype(jnp.bfloat16) @ w.astype(jnp.bfloat16)).astype(jnp.float32) @ jnp.zeros(
        (8, 8)
    ) + (X @ lax.stop_gradient(w))


@rule((6, 8), "io", tested=LOW)
def complex_numbers(w):
    z = lax.complex(X, 2 * X)
    y = z @ lax.complex(w, 3.0 * w) + jnp.dot(z, w.astype(jnp.complex64) * jnp.array(1j))
    y += lax.dot_general(X, lax.complex(w, w), (((1,), (0,)), ((), ())))  # one side is real
    return y.real, y.imag


@rule((6, 8), "io")
def products_with_a_precision_or_axes_of_size_one(w):
    """Neither factor has the first axis, which is summed."""
    sized_one = lax.dot_general(X[None], jnp.copy(w)[None], (((0, 2), (0, 1)), ((), ())))
    return sized_one, jnp.dot(X, w, precision="highest"), jnp.dot(X, w, precision="high")


@rule((6, 5, 3), "ios")
def modes_of_a_stack(w):
    return jnp.einsum("nim,iom->nom", jnp.tile(X[..., None], 3), w), w[..., 1].T @ X.T


@rule((6, 2, 4), "sio")
def stacks_that_are_split(w):
    w = w.reshape(2, 3, 2, 4)
    batch = X[:, None, None, :2] * jnp.arange(6.0).reshape(1, 3, 2, 1)
    return jnp.einsum("ni,abio->nabo", X[:, :2], w), jnp.einsum("nbai,abio->nabo", batch, w)


@rule((6, 2, 4), "sio", LOW)
def a_part_of_a_stack_is_a_batch(w):
    return jnp.einsum("bni,abio->nabo", X.reshape(3, 4, 2), w.reshape(2, 3, 2, 4))


@rule((3, 6, 6), "sio")
def scans(w):
    y, _ = lax.scan(lambda x, w: (jnp.tanh(x @ w), None), X, w)
    return lax.scan(lambda x, w: (jnp.tanh(x @ w.T), x), y, w, reverse=True)


@rule((6, 3, 6), "iso")
def scans_over_another_axis(w):
    return lax.scan(lambda x, w: (jnp.tanh(x @ w), None), X, jnp.moveaxis(w, 1, 0))[0]


@rule((6, 2, 6), "ioo", LOW)
def scans_over_outputs(w):
    return lax.scan(lambda x, w: (jnp.tanh(x @ w), None), X, jnp.moveaxis(w, 1, 0))[0]


@rule((6, 6), "io")
def checkpoints(w):
    negative = jax.checkpoint(lambda w: X @ w)(-w)  # a factor goes along
    return jax.checkpoint(lambda x, w: jnp.tanh(x @ w), prevent_cse=False)(X, w), negative


@rule((6, 6), "io", tested=LOW)
def loops_branches_and_jit(w):
    step = lambda _, x: lax.cond(x[0, 0] > 9.0, lambda: x, lambda: jnp.tanh(x @ w))  # noqa: E731
    return lax.fori_loop(0, 3, step, X), jax.jit(lambda w, x: x @ w)(w, X)


@rule((3, 6, 8), "iio", LOW)
def convolutions(w):
    conv = functools.partial(lax.conv_general_dilated, dimension_numbers=NWC)
    y = conv(IMAGES, w, (1,), "SAME") + conv(IMAGES, w, (1,), [(2, 2)], rhs_dilation=(2,))
    return y, conv(IMAGES, w, (2,), "VALID"), conv(IMAGES, w, (1,), [(1, 1)], lhs_dilation=(2,))


@rule((3, 3, 8), "iio", LOW, tested=LOW)
def grouped_convolutions(w):
    return lax.conv_general_dilated(
        IMAGES, w, (1,), "SAME", dimension_numbers=NWC, feature_group_count=2
    )


@rule((3, 8, 6), "ioi", LOW, tested=LOW)
def convolutions_to_the_inputs(w):
    return lax.conv_general_dilated(
        IMAGES, w.transpose(0, 2, 1), (1,), "SAME", dimension_numbers=NWC
    )


@rule((3, 6, 8), "ooi", LOW, tested=LOW)
def convolutions_whose_places_are_outputs(w):
    return lax.conv_general_dilated(
        jnp.tile(IMAGES, (1, 1, 2))[..., :8],
        w.transpose(0, 2, 1),
        (1,),
        "SAME",
        dimension_numbers=NWC,
    )


@rule((9, 6), "eo")
def lookups(w):
    ids = jnp.array([[0, 8], [3, 3]])
    filled = jnp.take(w, jnp.array([2, 11]), axis=0, fill_value=7.0)
    return w[ids], jnp.take(w.T, ids, axis=1), filled


@rule((9, 6), "eo", LOW)
def rows_of_a_table(w):
    return w[5] + w[-2] + w[jnp.argmax(X[0])], X @ w[2:8], w[2:8] @ X.T


@rule((9, 6), "eo", (), tested=LOW)
def multiples_that_are_filled(w):
    return jnp.take(w - 3.0 * w, jnp.array([2, 11]), axis=0, fill_value=7.0)


@rule((9, 6), "oe")
def lookups_of_columns(w):
    return w[:, jnp.array([0, 5, 2])]


@rule((3, 6, 8), "sio", LOW, tested=LOW)
def lookups_in_a_stack(w):
    return jnp.einsum("ni,nio->no", X, w[jnp.array([0, 2, 2, 1])])


@rule((3, 6, 8), "sio")
def one_of_a_stack(w):
    y = X @ w[1] + X @ w[jnp.argmax(X[0, :3])] + jnp.einsum("ni,eio->neo", X, w[:2]).sum(axis=1)
    return y, X @ w[-1]


@rule((3, 6, 8), "sio", LOW)
def parts_of_one_of_a_stack(w):
    place = jnp.argmax(X[0, :3])
    return w[0, 2], w[place, :3], X[:, 1:] @ w[2, 1:], jnp.einsum("ni,ei->ne", X, w[..., 3])


@rule((6, 8), "io", LOW)
def parts(w):
    first, second = jnp.split(w, [3], axis=1)
    place = jnp.argmax(X[0])
    return (
        *(X @ first, X @ second, X @ w[:, 2:5], jnp.sin(w[3, 1:4]), X[:, :2] @ w[1:3]),
        *(w[3], w[:, -2], w[place], X[:, 1:] @ w[1:, 2:7]),
        X @ lax.dynamic_slice(w, (0, place), (6, 2)),
    )


@rule((2, 6, 4), "sio")
def parts_by_unstack(w):
    return [X @ one for one in jnp.unstack(w)]


@rule((3, 9, 6), "seo")
def lookups_in_one_of_a_stack(w):
    return w[1][jnp.array([0, 8, 3])]


@rule((3, 6, 8), "sio", LOW, tested=LOW)
def ragged(w):
    return lax.ragged_dot(X, w, jnp.array([1, 0, 3]))


@rule((6, 8), "io", LOW)
def shards(w):
    mesh = jax.make_mesh((2, 2), ("a", "b"), axis_types=(jax.sharding.AxisType.Auto,) * 2)

    def part(x, w):
        return lax.psum(x @ w, "a")

    specs = {"in_specs": (P(None, "a"), P("a", "b")), "out_specs": P(None, "b")}
    return jax.jit(jax.shard_map(part, mesh=mesh, **specs))(X, w)


@rule((6, 8), "io", tested=LOW)
def constrained(w):
    mesh = jax.make_mesh((2,), ("a",), axis_types=(jax.sharding.AxisType.Auto,))
    where = jax.sharding.NamedSharding(mesh, P(None, "a"))
    return X @ lax.with_sharding_constraint(w, where)


@jax.custom_vjp
def doubled(x, w):
    return x @ w


# Not the derivative: it must be kept.
doubled.defvjp(lambda x, w: (x @ w, (x, w)), lambda kept, g: (g @ kept[1].T, 2 * kept[0].T @ g))


@rule((6, 8), "io", (), tested=LOW)
def rules_of_its_own(w):
    jvp = jax.custom_jvp(lambda w: X @ w)
    jvp.defjvp(lambda w, t: (X @ w[0], 3 * (X @ t[0])))
    return doubled(X, w), jvp(w)


@rule((6, 8), "io", (), tested=LOW)
def functions_for_platforms(w):
    def elsewhere(w):  # a kernel that only compiles for others
        def kernel(w_ref, y_ref):
            y_ref[...] = w_ref[...]

        return X @ pallas.pallas_call(kernel, jax.ShapeDtypeStruct(w.shape, w.dtype))(w)

    return lax.platform_dependent(lax.stop_gradient(w), cpu=lambda w: X @ w, cuda=elsewhere)


@rule((6, 8), "io", (), tested=LOW)
def everything_else(w):
    normed = w / jnp.linalg.norm(w, axis=0, keepdims=True)
    return (
        *(X @ normed, jnp.sort(w, axis=0), jnp.outer(X[0], w[0]).sum(), w.sum(), X @ w.mean(1)),
        X @ jnp.where(jnp.arange(8)[None] > jnp.arange(6)[:, None], w, 0.0),
        *(X @ w[::-1], X @ jnp.concatenate([w[:4], w[4:]]), w[:0].reshape(0).sum()),
    )


def adapted(shape, axes, method, rank=2):
    box = DeclaredArray.of(jr.normal(jr.key(2), shape) / 2, axes)
    adapter = apply_lora(box, rank, 3.0, key=jr.key(3), wrapper=method)
    trainable, frozen = eqx.partition(adapter, lora_trainable_filter(adapter))
    moved = jax.tree.map(lambda x: x + 0.2 * jr.normal(jr.key(x.size), x.shape), trainable)
    return moved, frozen


@pytest.mark.slow
@pytest.mark.parametrize(("name", "method", "is_computed"), CASES)
def test_values_gradients_and_reports(name, method, is_computed):
    function, shape, axes = RULES[name]
    trainable, frozen = adapted(shape, axes, method)

    @jax.jit  # one program, which takes less time to compile than two
    def both(trainable):
        def of(function):
            def loss(trainable):
                results = jax.tree.leaves(function(eqx.combine(trainable, frozen)))
                return sum(jnp.sum(jnp.sin(y)) for y in results), results

            return jax.value_and_grad(loss, has_aux=True)(trainable)

        return of(lambda w: function(plain(w))), of(through(function))

    tolerance = 2e-2 if name == "casts" else 1e-4
    for x, y in zip(*map(jax.tree.leaves, both(trainable)), strict=True):
        assert jnp.max(jnp.abs(x - y)) <= tolerance * (1 + jnp.max(jnp.abs(x)))
    merged = [use for use in report_uses(function, eqx.combine(trainable, frozen)) if use.reason]
    assert (merged == []) == is_computed
    if merged and name != "everything_else":
        with pytest.raises(JnoLoraError, match="needs the merged weight"):
            eqx.filter_eval_shape(through(function, strict=True), eqx.combine(trainable, frozen))


def convolved(x, kernel):
    return lax.conv_general_dilated(x, kernel, (1,), "SAME", dimension_numbers=NWC)


# By a weight and a method: the reason to merge, and a use.
MERGED = {
    ((6, 8), "io", "lora"): {
        "repeated along an axis": lambda w: X @ jnp.broadcast_to(w, (2, 6, 8)),
        "added to an array": lambda w: X @ (w + jnp.ones((6, 8))),
        "multiplied by an array": lambda w: w * w,
        "a product of two weights": lambda w: w.T @ w,
        "a reshape that joins axes of different kinds": lambda w: w.reshape(-1),
        "cast to another kind of number": lambda w: (4 * w).astype(jnp.int32),
        "a slice with strides": lambda w: lax.slice(w, (0, 0), (6, 8), (2, 1)),
        "a complex number with an array as one part": lambda w: (
            lax.complex(X, X) @ lax.complex(w, jnp.ones((6, 8)))
        ),
        "a lookup along an axis of size one": lambda w: w[None][jnp.array([0, 0])],
        "a gather of parts of slices": lambda w: jax.vmap(
            lambda n: lax.dynamic_slice(w, (n, 0 * n), (2, 8))
        )(jnp.array([0, 3])),
    },
    ((6, 8), "io", "dora"): {
        "not a lookup, by ids, of rows of an embedding or columns of a linear layer": (
            lambda w: w[:, jnp.array([0, 5])]
        ),
        "a reshape that splits an axis of the weight unevenly": lambda w: w.reshape(8, 6),
        "a product with the precision (Precision.HIGHEST, Precision.DEFAULT)": lambda w: jnp.dot(
            X, w, precision=("highest", "default")
        ),
    },
    ((9, 6), "eo", "boft"): {"BOFTArray has no fast path here": lambda w: w[jnp.array([0, 8, 3])]},
    ((2, 3, 8), "iio", "dora"): {
        "a sum over a part of the inputs or outputs": lambda w: jnp.einsum(
            "nd,hdo->nho", lax.complex(X, X)[:, :3], lax.complex(w, w)
        )
    },
    ((4, 8), "io", "lora"): {
        "a weight that is convolved itself": lambda w: convolved(w[None], jnp.ones((3, 8, 2)))
    },
    ((3, 6, 8), "sio", "lora"): {
        "a convolution that sums over other axes than a product does": (
            lambda w: convolved(IMAGES, w)
        )
    },
    ((3, 6, 8), "ioo", "lora"): {
        "a convolution whose inputs and outputs are of one kind": lambda w: convolved(IMAGES, w)
    },
    ((3, 6, 8), "iio", "lora"): {
        "a ragged product of axes that are not a stack, inputs and outputs": (
            lambda w: lax.ragged_dot(X, w, jnp.array([1, 0, 3]))
        )
    },
    ((4, 6), "io", "lora"): {
        "a ragged product that is not x @ weight[group]": (
            lambda w: lax.ragged_dot(w, jnp.ones((3, 6, 8)), jnp.array([1, 0, 3]))
        )
    },
}


@pytest.mark.parametrize(("shape", "axes", "method"), MERGED)
def test_uses_that_are_merged_say_why(shape, axes, method):
    adapter = eqx.combine(*adapted(shape, axes, method))
    for reason, function in MERGED[shape, axes, method].items():
        assert {use.reason for use in report_uses(function, adapter)} == {reason}
        assert jnp.allclose(through(function)(adapter), function(plain(adapter)), atol=1e-5)


def test_a_product_that_asks_for_a_sharding_is_merged():
    mesh = jax.make_mesh((2,), ("a",), axis_types=(jax.sharding.AxisType.Explicit,))
    adapter = eqx.combine(*adapted((6, 8), "io", "lora"))
    function = lambda w: jnp.dot(X, w, out_sharding=P("a"))  # noqa: E731
    with jax.set_mesh(mesh):
        (use,) = report_uses(function, adapter)
        found = through(function)(adapter)
    assert use.reason == "a product that asks for a sharding"
    assert found.sharding.spec == P("a", None)
    assert jnp.allclose(found, X @ plain(adapter), atol=1e-5)


def test_a_weight_of_one_number_is_a_value_under_any_shape():
    adapter = eqx.combine(*adapted((1, 1), "io", "lora", rank=1))
    assert all(use.reason is None for use in report_uses(lambda w: w.reshape(1), adapter))
    assert jnp.allclose(through(lambda w: w.reshape(1))(adapter), plain(adapter)[0])


def test_an_algorithm_is_kept_where_the_dtypes_are_its_own():
    """The factors of a bfloat16 weight multiply in the product's float32, which has another."""
    adapter = eqx.combine(*adapted((6, 8), "io", "lora"))

    def function(w):
        x, w = X.astype(jnp.bfloat16), w.astype(jnp.bfloat16)
        return jnp.dot(x, w, precision="BF16_BF16_F32", preferred_element_type=jnp.float32)

    products = [
        eqn.params["precision"]
        for eqn in jax.make_jaxpr(lambda: through(function)(adapter))().eqns
        if eqn.primitive.name == "dot_general"
    ]
    assert products == [lax.DotAlgorithmPreset.BF16_BF16_F32, None, None]
    assert jnp.allclose(through(function)(adapter), function(plain(adapter)), atol=0.02)


@pytest.mark.parametrize(("kernel", "channels"), [((3, 6, 3), 3), ((3, 1, 6), 6)])
def test_convolutions_to_few_channels_are_merged_which_is_cheaper(kernel, channels):
    """Also a depthwise one. That is a choice: `strict` takes it."""

    def function(w):
        groups = 6 // w.shape[1]
        return lax.conv_general_dilated(
            IMAGES, w, (1,), "SAME", dimension_numbers=NWC, feature_group_count=groups
        )

    adapter = eqx.combine(*adapted(kernel, "iio", "lora"))
    (use,) = report_uses(function, adapter)
    assert use.reason.startswith("merging is cheaper")
    found = through(function, strict=True)(adapter)
    assert found.shape[-1] == channels
    assert jnp.allclose(found, function(plain(adapter)), atol=1e-5)


def test_a_sum_of_views_of_which_one_gives_values():
    """A lookup in a stack is a view, one along inputs is not."""
    first, second = (eqx.combine(*adapted((3, 6, 8), axes, "lora")) for axes in ("sio", "iio"))
    function = lambda v, w: (v + 2.0 * w)[jnp.array([0, 2])]  # noqa: E731
    expected = function(plain(first), plain(second))
    assert jnp.allclose(through(function)(first, second), expected, atol=1e-5)


def test_equations_keep_their_scopes_contexts_and_precisions():
    def function(w):
        with jax.named_scope("inner"), jax.default_matmul_precision("highest"):
            return X @ w

    arrays, rest = eqx.partition(eqx.combine(*adapted((6, 8), "io", "lora")), eqx.is_array)
    step = jax.jit(lambda arrays: through(function)(eqx.combine(arrays, rest)))
    text = step.lower(arrays).as_text(debug_info=True)
    assert "inner/dot_general" in text
    assert text.count("precision = [HIGHEST, HIGHEST]") == 3

    def convolve(w):
        options = {"dimension_numbers": NWC, "precision": "highest"}
        return lax.conv_general_dilated(IMAGES, w, (1,), "SAME", **options)

    kernel = eqx.combine(*adapted((3, 6, 8), "iio", "lora"))
    traced = str(jax.make_jaxpr(lambda: through(convolve)(kernel))())
    assert "Precision.HIGHEST" in traced and "precision=None" not in traced


# Where `infer` finds other axes than these, which are as good, or none.
OTHER_AXES = {
    "one_of_several_inputs_is_shared": "sio",
    "scans_over_outputs": "iso",
    "convolutions_whose_places_are_outputs": "ioi",
    "rows_of_a_table": "io",
    **dict.fromkeys(("multiples_that_are_filled", "shards", "parts_of_one_of_a_stack")),
    **dict.fromkeys(("stacks_that_are_split", "a_part_of_a_stack_is_a_batch", "one_of_a_stack")),
}


@pytest.mark.parametrize("name", sorted(RULES))
def test_axes_follow_from_the_use(name):
    function, shape, axes = RULES[name]
    expected = OTHER_AXES.get(name, axes)
    assert infer(lambda p: function(p["w"]), {"w": jnp.ones(shape)}).letters.get("w") == expected
