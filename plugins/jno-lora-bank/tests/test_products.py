"""The update of one of many slots equals the update by `vmap`, in values and derivatives."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from jax.core import ShapedArray
from jax.experimental.jet import jet
from jax.interpreters import ad

from jno_lora_bank import _products
from jno_lora_bank._products import slot_update

SLOTS, BATCH, SIZES = 5, 11, (6, 2, 4)
keys = jr.split(jr.key(0), 4)
x = jr.normal(keys[0], (BATCH, SIZES[0]))
A = jr.normal(keys[1], (SLOTS, SIZES[1], SIZES[0]))
Bt = jr.normal(keys[2], (SLOTS, SIZES[1], SIZES[2]))
slots = jr.randint(keys[3], (BATCH,), 0, SLOTS)
scales = jnp.asarray([0.0, 1.0, -0.5, 0.5, 0.75])


def by_slots(x, A, Bt, slot):
    return slot_update(jnp.cos(x[: SIZES[2]]), x, A, Bt, scales[slot], slot)


def expected(x, A, Bt, slot):
    return jnp.cos(x[: SIZES[2]]) + scales[slot] * ((A[slot] @ x) @ Bt[slot])


def batch(function):
    return lambda x, A, Bt: jax.vmap(function, (0, None, None, 0))(x, A, Bt, slots)


def loss(function):
    return lambda *args: jnp.sum(jnp.sin(batch(function)(*args)))


def hessians(function):
    """For each example, as losses of differential equations need them."""

    def hessian(x, A, Bt, slot):
        return jax.hessian(lambda x: jnp.sum(jnp.sin(function(x, A, Bt, slot))))(x)

    return batch(hessian)


def of_a_sequence(function):
    """More rows of one slot than the rank."""
    tokens = jax.vmap(lambda x, A, Bt, slot: function(x, A, Bt, slot), (0, None, None, None))
    return lambda x, A, Bt: batch(tokens)(jnp.stack([x, 2 * x, 3 * x], axis=1), A, Bt)


def of_many_stacks(function):
    """Another set of matrices for each, as in an ensemble."""
    return lambda x, A, Bt: jax.vmap(batch(function), (None, 0, None))(x, jnp.stack([A, -A]), Bt)


def transposes(function):
    """Of the derivative by `x`, as iterative solvers ask for them."""

    def transposed(x, A, Bt):
        of_x = jax.linearize(lambda x: batch(function)(x, A, Bt), x)[1]
        return jax.linear_transpose(of_x, x)(jnp.ones((BATCH, SIZES[2])))

    return transposed


def of_pullbacks(function):
    """The transpose of a gradient by both factors: the derivative along them."""

    def transposed(x, A, Bt):
        pull = jax.vjp(lambda A, Bt: batch(function)(x, A, Bt), A, Bt)[1]
        return jax.linear_transpose(pull, jnp.ones((BATCH, SIZES[2])))((A, Bt))

    return transposed


def of_one_example(function):
    """Without `vmap`."""

    def total(x, A, Bt):
        return jnp.sum(jnp.sin(function(x[0], A, Bt, slots[1])))

    return jax.grad(total, (0, 1, 2))


def taylor(function):
    return lambda x, A, Bt: jet(lambda x: batch(function)(jnp.sin(x), A, Bt), (x,), ((x, x),))


@jax.custom_jvp
def still(A):
    """`A`, whose tangent is an array of zeros."""
    return A


still.defjvp(lambda primals, tangents: (primals[0], jnp.zeros_like(primals[0])))


def of_gradients(function):
    """Derivatives of the gradient by both factors: in reverse, forwards and of a Taylor series."""

    def steepness(x, A, Bt):
        grads = jax.grad(loss(function), (0, 1, 2))(x, A, Bt)
        return sum(jnp.sum(jnp.cos(g)) for g in grads)

    def derivatives(x, A, Bt):
        of_factors = jax.grad(loss(function), (1, 2))
        series = jet(lambda A: of_factors(x, A, Bt), (A,), ((A, A),))
        forwards = jax.jvp(lambda *args: batch(function)(*args), (x, A, Bt), (x, A, Bt))
        of_still = jax.grad(lambda A, Bt: loss(function)(x, still(A), Bt), (0, 1))(A, Bt)
        return jax.grad(steepness, (0, 1, 2))(x, A, Bt), series, forwards, of_still

    return derivatives


CASES = {
    "of gradients": of_gradients,
    "values": batch,
    "gradients": lambda function: jax.grad(loss(function), (0, 1, 2)),
    "second derivatives": lambda function: jax.hessian(loss(function), (1, 2)),
    "per example": hessians,
    "a sequence": of_a_sequence,
    "gradients of many stacks": lambda function: jax.grad(
        lambda *args: jnp.sum(jnp.sin(of_many_stacks(function)(*args))), (1, 2)
    ),
    "jet": taylor,
    "transposes": transposes,
    "transposes of gradients": of_pullbacks,
    "gradients of one example": of_one_example,
}


@pytest.mark.parametrize("case", CASES)
def test_they_are_those_of_vmap(case):
    ours, wanted = (jax.jit(CASES[case](f))(x, A, Bt) for f in (by_slots, expected))
    for our_leaf, leaf in zip(jax.tree.leaves(ours), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(our_leaf, leaf, atol=2e-5, rtol=1e-5)


def test_without_jit_without_rows_and_along_tangents_of_numpy_they_are_the_same():
    arguments = x[0], A, Bt, slots[0]
    np.testing.assert_allclose(by_slots(*arguments), expected(*arguments), atol=1e-5)
    with jax.disable_jit():
        without = batch(by_slots)(x, A, Bt)
    np.testing.assert_allclose(without, batch(expected)(x, A, Bt), atol=1e-5)
    rows = jax.vmap(by_slots, (0, None, None, None))
    results = batch(rows)(jnp.zeros((BATCH, 0, SIZES[0])), A, Bt)
    assert results.shape == (BATCH, 0, SIZES[2])
    of_factors = lambda x, A, Bt: by_slots(x, A, Bt, slots[0])  # noqa: E731
    tangents = x[1], 2 * A, 3 * Bt
    ours, wanted = (
        jax.jvp(of_factors, (x[0], A, Bt), along)[1]
        for along in (tuple(map(np.asarray, tangents)), tangents)
    )
    np.testing.assert_array_equal(ours, wanted)


def test_a_cotangent_that_is_known_to_be_zero_gives_zeros():
    """As JAX asks of rules. Today it leaves out equations whose results are not used."""
    y_type, x_type = (
        ShapedArray((1, 1, size), jnp.dtype("float32")) for size in (SIZES[2], SIZES[0])
    )
    rule = ad.primitive_transposes[_products._update]
    y, x = map(ad.UndefinedPrimal, (y_type, x_type))
    cotangents = rule(ad.Zero(y_type), y, x, A, Bt, scales[:1], slots[:1])
    assert [type(ct) for ct in cotangents] == [ad.Zero, ad.Zero, *[type(None)] * 4]
    assert [ct.aval for ct in cotangents[:2]] == [y_type, x_type]


def test_derivatives_by_the_scale():
    """Also of the gradient, and where the scale is 0."""

    def of_slot(s, x, A, slot, function):
        return jnp.sum(jnp.sin(function(s, x, A, slot)))

    def ours(s, x, A, slot):
        return slot_update(jnp.zeros(SIZES[2]), x, A, Bt, s, slot)

    def plain(s, x, A, slot):
        return s * ((A[slot] @ x) @ Bt[slot])

    def derivatives(function):
        def total(s, A):
            of_examples = jax.vmap(lambda s, x, slot: of_slot(s, x, A, slot, function))
            return jnp.sum(of_examples(s, x, slots))

        def steepness(s):
            return jnp.sum(jax.grad(total, 1)(s, A) ** 2)

        return jax.jit(lambda s: (jax.grad(total)(s, A), jax.grad(steepness)(s)))(scales[slots])

    for our_leaf, leaf in zip(derivatives(ours), derivatives(plain), strict=True):
        np.testing.assert_allclose(our_leaf, leaf, atol=1e-3, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("rows", [1, 3])
def test_all_platforms_compute_the_same(rows):
    """The loop of CPUs, the copies of GPUs and the ragged product of TPUs."""
    xs, s = jnp.stack([x] * rows, axis=1), scales[slots]
    ys = jnp.ones((BATCH, rows, SIZES[2]))
    wanted = _products.gathered_update(ys, xs, A, Bt, s, slots)
    for function in (_products.looped_update, _products.ragged_update):
        np.testing.assert_allclose(function(ys, xs, A, Bt, s, slots), wanted, atol=1e-5)
    functions = (_products.gathered_sums, _products.looped_sums)
    sums = [f(xs, A, ys, s, slots) for f in functions]
    np.testing.assert_allclose(*sums, atol=1e-4)
    wanted = [_products.gathered_update(jnp.zeros_like(xs), ys, Bt, A, s, slots)]
    wanted += [_products.gathered_sums(*sides, s, slots) for sides in ((ys, Bt, xs), (xs, A, ys))]
    for of_x in (True, False):
        ours = _products.looped_cotangents(ys, xs, A, Bt, s, slots, of_x=of_x)
        for our_leaf, leaf in zip(ours, wanted[not of_x :], strict=True):
            np.testing.assert_allclose(our_leaf, leaf, atol=1e-4)


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_tpus_have_a_ragged_product_for_the_cotangent_of_the_input(platform):
    """As for the update. The program is only written, not compiled."""
    arrays = jnp.ones((BATCH, 1, SIZES[2])), x[:, None], A, Bt, scales[slots], slots
    of_x = jax.jit(lambda *arrays: _products._cotangents.bind(*arrays, of_x=True)[0])
    program = of_x.trace(*arrays).lower(lowering_platforms=(platform,)).as_text()
    assert ("ragged_dot" in program) == (platform == "tpu")


UPDATES = [getattr(_products, f"{way}_update") for way in ("gathered", "looped", "ragged")]


@pytest.mark.parametrize("function", UPDATES)
def test_a_scale_of_zero_leaves_the_output_as_it_is(function):
    xs = x.at[:].set(jnp.inf)[:, None]
    ys = jr.normal(jr.key(1), (BATCH, 1, SIZES[2])).at[0].set(-0.0)
    s = jnp.where(slots == 2, 0, 1.0)
    updated = function(ys, xs, A, Bt, s, slots)
    is_same = np.asarray(updated).view(np.int32) == np.asarray(ys).view(np.int32)
    np.testing.assert_array_equal(is_same.all(axis=(1, 2)), slots == 2)


def test_a_scale_of_zero_gives_gradients_of_zero():
    """Also where the factors of the slot are infinite."""
    factors = [M.at[2].set(jnp.inf) for M in (A, Bt)]
    xs, ys = x[:, None], jnp.ones((BATCH, 1, SIZES[2]))
    s = jnp.where(slots == 2, 0, 1.0)
    assert 0 < jnp.sum(slots == 2) < BATCH
    cotangents = _products.looped_cotangents(ys, xs, *factors, s, slots, of_x=True)
    for function in (_products.gathered_sums, _products.looped_sums):
        sums = [function(xs, factors[0], ys, s, slots), function(ys, factors[1], xs, s, slots)]
        for array in (*sums, *cotangents):
            assert jnp.isfinite(array).all()


@pytest.mark.parametrize("side", [0, 1])
def test_a_nan_stays_in_its_slot(side):
    """The gradient of one adapter does not depend on the examples of another."""
    sides = [x[:, None], x[:, None]]
    sides[side] = sides[side].at[0].set(jnp.nan)
    s = jnp.ones(BATCH)
    for function in (_products.gathered_sums, _products.looped_sums):
        sums = function(sides[0], A, sides[1], s, slots)
        is_nan = np.isnan(sums).any(axis=(1, 2))
        np.testing.assert_array_equal(is_nan, np.arange(SLOTS) == slots[0])
    dx, *sums = _products.looped_cotangents(sides[1], sides[0], A, A, s, slots, of_x=True)
    np.testing.assert_array_equal(np.isnan(dx).any(axis=(1, 2)), side * (np.arange(BATCH) == 0))
    for of_factor in sums:
        is_nan = np.isnan(of_factor).any(axis=(1, 2))
        np.testing.assert_array_equal(is_nan, np.arange(SLOTS) == slots[0])
    for function in UPDATES:
        ys = function(sides[1][..., : SIZES[2]], sides[0], A, Bt, s, slots)
        np.testing.assert_array_equal(np.isnan(ys).any(axis=(1, 2)), np.arange(BATCH) == 0)
