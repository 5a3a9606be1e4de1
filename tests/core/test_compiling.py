"""`run`: one program per form of its arguments, unchanged arguments stay the objects they were.

While a weight is decomposed, BLAS has one thread.
"""

import dataclasses
import enum

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg.cython_lapack  # noqa: F401  # what JAX calls
import threadpoolctl

from jno.lora import apply_lora, merge_lora, unwrap_lora
from jno.lora._compute.lapack import decomposes, one_blas_thread
from jno.lora.extending import equations_in, gauss_jordan, run

from .toys import ToyConv, ToyLinear, shaken


def test_layers_of_one_form_share_a_program(getkey):
    traces = []

    def doubled(layer, factor):
        traces.append(factor)
        return eqx.tree_at(lambda m: m.weight, layer, factor * layer.weight)

    layers = [eqx.nn.Linear(3, 2, key=getkey()) for _ in range(5)]
    for layer in layers:
        result = run(doubled, layer, 2.0)
        np.testing.assert_array_equal(result.weight, 2 * layer.weight)
        assert result.bias is layer.bias
    after_one_form = len(traces)
    assert after_one_form <= 2  # for the shapes, and for the program
    run(doubled, eqx.nn.Linear(4, 2, key=getkey()), 2.0)
    run(doubled, layers[0], 3.0)
    assert len(traces) == 3 * after_one_form
    unchanged = jax.tree.leaves(run(lambda m: m, layers[0]))
    assert all(x is y for x, y in zip(unchanged, jax.tree.leaves(layers[0]), strict=True))


class Mode(enum.IntEnum):
    B = 1


class Tagged(eqx.Module):
    weight: jax.Array
    tag: object = eqx.field(static=True)


@dataclasses.dataclass(frozen=True)
class Frozen:
    value: object


@pytest.mark.parametrize("inside", [lambda x: x, lambda x: (x, 2), lambda x: [x], Frozen])
def test_static_values_that_are_equal_but_not_the_same_are_kept_apart(inside):
    def tagged(module, tag):
        return eqx.tree_at(lambda m: m.weight, module, 2 * module.weight), [tag]

    tags = [inside(value) for value in (1, 1.0, True, Mode.B, 0.0, -0.0)]
    for tag in tags:
        module, kept = run(tagged, Tagged(jnp.ones(2), tag), tag)
        assert repr(module.tag) == repr(tag) == repr(kept[0])


@pytest.mark.filterwarnings("ignore:.*set as static")
def test_static_values_that_cannot_be_hashed_or_compared_are_no_obstacle():
    def scaled(module):
        return module.weight * module.tag[0]

    for number in (2, 3):
        for tag in ([number], [np.full(2, float(number))]):
            np.testing.assert_array_equal(run(scaled, Tagged(jnp.ones(2), tag)), [number, number])
        np.testing.assert_array_equal(run(lambda x, tag: x * max(tag), 1.0, {number}), number)


def test_a_static_field_that_keeps_a_traced_array_gets_the_array_itself():
    with pytest.warns(UserWarning, match="set as static"):
        (tagged,) = run(lambda x, tag: [Tagged(x, tag)], jnp.ones(2), jnp.ones(()))
    assert tagged.tag == 1


def test_a_function_that_cannot_be_compiled_is_called_as_it_is_and_fails_with_its_own_error():
    calls = []

    def fails(x, error):
        calls.append(x)
        raise error("mine: RESOURCE_EXHAUSTED")

    assert run(lambda x: float(x) + x, jnp.array(2.0)) == 4.0
    with pytest.raises(KeyError, match="mine"):
        run(fails, jnp.ones(2), KeyError)
    assert len(calls) == 1  # an exhausted machine is not asked for more


def test_unhashable_values_traced_arrays_numpys_arrays_and_raw_keys_are_no_obstacle():
    def total(x, options):
        return x * len(options)

    def draw(key, x):
        return jax.random.normal(key, x.shape) + x

    assert run(total, jnp.ones(()), {"a": [1, 2]}) == 1
    traced = jax.jit(lambda x: run(total, x, {"a": 1, "b": 2}))(jnp.ones(()))
    assert traced == 2
    x = np.zeros(3, np.float32)
    typed, raw = (run(draw, key(1), x) for key in (jax.random.key, jax.random.PRNGKey))
    np.testing.assert_array_equal(typed, raw)


def test_other_settings_make_another_program():
    def ones(x):
        return x + jnp.zeros(2)

    assert run(ones, jnp.ones(2)).dtype == jnp.float32
    with jax.enable_x64(True):
        assert run(ones, jnp.ones(2)).dtype == jnp.float64


def test_no_argument_is_copied_and_no_two_results_share_a_buffer(getkey):
    def wrapped(layer):
        return {"layer": layer, "bias": layer.bias, "extra": jnp.zeros(3)}

    layer = eqx.nn.Linear(400, 300, key=getkey())
    result = run(wrapped, layer)
    assert result["layer"] is layer and result["bias"] is layer.bias

    def made(layer):
        return [jnp.zeros(2), jnp.zeros(2), layer.weight + 1, jnp.copy(layer.weight + 1)]

    arrays = jax.tree.leaves([run(made, layer) for _ in range(3)])
    assert len({array.unsafe_buffer_pointer() for array in arrays}) == len(arrays) == 12
    jax.block_until_ready(jax.jit(lambda xs: [x * 2 for x in xs], donate_argnums=0)(arrays))


@pytest.mark.parametrize(
    ("function", "value"),
    [(lambda x: jax.random.fold_in(x, 1), jax.random.key(0)), (lambda x: x * 2, jnp.asarray(3))],
    ids=["key", "weak"],
)
def test_keys_and_weak_types_stay_what_they_are(function, value):
    found, expected = run(function, value), function(value)
    assert found.dtype == expected.dtype and jnp.all(found == expected)
    assert getattr(found, "weak_type", None) == getattr(expected, "weak_type", None)


def test_layers_on_a_device_get_their_adapters_there(getkey):
    device = jax.devices()[3]
    linears = [eqx.nn.Linear(3, 2, key=getkey()) for _ in range(2)]
    layers = [*linears, eqx.nn.Conv1d(2, 2, 3, key=getkey())]
    there = jax.device_put(layers[1:], device)
    key = jax.device_put(getkey(), jax.devices()[5])
    model = apply_lora([layers[0], *there], 1, key=key, wrapper=[ToyLinear, ToyConv])
    for adapter in model[1:]:
        assert {device} == set.union(*(x.devices() for x in jax.tree.leaves(adapter)))
    for plain in (merge_lora(shaken(model)), unwrap_lora(model)):
        assert all(x.devices() == {device} for x in jax.tree.leaves(plain[1:]))


# --- decompositions


def threads():
    found = threadpoolctl.threadpool_info()
    return max(one["num_threads"] for one in found if one["user_api"] == "blas")


@pytest.fixture
def several_threads():
    """More than one, even where the suite is run with one."""
    with threadpoolctl.threadpool_limits(4, user_api="blas"):
        if threads() < 2:
            pytest.fail("this BLAS cannot be given threads")
        yield


def threads_seen(x):
    seen = jax.ShapeDtypeStruct((), jnp.int32)
    return jax.pure_callback(lambda _: np.int32(threads()), seen, x)


def q_and_threads(x):
    return jnp.linalg.qr(x)[0], threads_seen(x)


def test_only_programs_that_decompose_have_one_thread(several_threads):
    def first(x, number):
        q, seen = q_and_threads(x)
        return q + number, seen

    before = threads()
    seen = [run(q_and_threads, k * jnp.eye(3))[1] for k in (1, 2)]
    seen.append(run(first, jnp.eye(3), np.float32(1))[1])  # a number of NumPy
    assert (seen, threads()) == ([1, 1, 1], before)
    assert run(threads_seen, jnp.ones(2)) == before
    with one_blas_thread():
        with one_blas_thread():
            pass
        assert threads() == 1
    assert threads() == before


@pytest.mark.parametrize("number", [jnp.nan, jnp.inf])
def test_numbers_that_are_not_finite_are_never_decomposed(number):
    W = jnp.eye(3).at[1, 2].set(number)
    with pytest.raises(FloatingPointError, match="NaN or infinity"):
        run(jnp.linalg.qr, W)
    np.testing.assert_array_equal(run(jnp.transpose, W), W.T)


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (jnp.linalg.svd, True),
        (jnp.linalg.inv, True),
        (jax.jit(jnp.linalg.cholesky), True),
        (lambda W: jax.lax.cond(W[0, 0] > 0, jnp.linalg.pinv, jnp.transpose, W), True),
        (lambda W: jax.lax.map(lambda w: jnp.linalg.svd(w[None])[1], W), True),
        (lambda W: jax.random.normal(jax.random.key(0), W.shape) @ W, False),
    ],
)
def test_a_decomposition_is_found_however_deep(function, expected):
    assert decomposes(jax.make_jaxpr(function)(jnp.eye(3)).jaxpr) is expected


@pytest.mark.parametrize("batch", [(), (2, 3)])
@pytest.mark.parametrize("pivoting", [True, False])
def test_elimination_solves_without_lapack(batch, pivoting, getkey):
    A = jax.random.normal(getkey(), (*batch, 4, 4))
    # A zero on the diagonal needs an exchange of rows; a positive definite matrix does not.
    positive = A @ A.mT + 0.1 * jnp.broadcast_to(jnp.eye(4), A.shape)
    A = A.at[..., 0, 0].set(0.0) if pivoting else positive
    B = jax.random.normal(getkey(), (*batch, 4, 3))
    X = jax.jit(gauss_jordan, static_argnames="pivoting")(A, B, pivoting=pivoting)
    np.testing.assert_allclose(A @ X, B, atol=1e-4)
    traced = jax.make_jaxpr(lambda A, B: gauss_jordan(A, B, pivoting=pivoting))(A, B)
    assert not decomposes(traced.jaxpr)
    # The equations in the loop are among them.
    assert "argmax" in {e.primitive.name for e in equations_in(traced.jaxpr)} or not pivoting
