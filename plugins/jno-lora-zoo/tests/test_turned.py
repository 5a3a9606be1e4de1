"""Rotations, reflections and projections, and LoKr: their options, and the paths that they take.

`test_oracles.py` checks that the defaults compute their laws. Every law here is in NumPy.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from zoo_cases import Adapter, assert_close, build, fields_of, perturb, reference, shapes_in_jaxpr
from zoo_cases.laws_turned import truncated
from zoo_cases.layers import matrix_of

import jno_lora_zoo as zoo
from jno.lora import apply_lora, lora_trainable_filter, merge_lora

KEY = jax.random.key(2)


def linear(inputs, outputs):
    return eqx.nn.Linear(inputs, outputs, key=KEY)


def trained(cls, base, rank, size=0.4, **options):
    return perturb(cls(base, rank, 1.0, key=KEY, **options), size)


@eqx.filter_jit  # one program in the place of many operations
def merged_and_outputs(wrapper, x):
    merged = wrapper.merge()
    return merged, wrapper(x), merged(x)


def check(wrapper, W=None):
    """The merged weight is `W` (the law), and the wrapper computes with it.

    The options that the saved arrays show make an adapter with the same arrays, and law.
    """
    cls, state = type(wrapper), wrapper.state()
    if W is None:
        base = matrix_of(wrapper.base)
        W = reference(cls.method.__name__, fields_of(wrapper), base, wrapper.rank, 1.0)
    x = jnp.asarray(np.random.default_rng(0).normal(size=wrapper.base.in_features), jnp.float32)
    merged, y, expected = merged_and_outputs(wrapper, x)
    assert_close(matrix_of(merged), W, 1e-5)
    assert_close(y, expected, 1e-5)
    options = cls.options_of(state)
    again = cls(wrapper.base, wrapper.rank, wrapper.alpha, key=KEY, **options)
    assert {n: x.shape for n, x in again.state().items()} == {n: x.shape for n, x in state.items()}
    names = list(state)
    filled = eqx.tree_at(lambda w: [getattr(w, n) for n in names], again, list(state.values()))
    assert_close(matrix_of(merged_and_outputs(filled, x)[0]), matrix_of(merged), 1e-7)


@pytest.mark.parametrize(("terms", "inputs"), [(2, 6), (3, 6), (4, 6), (5, 7)])
def test_the_series_of_the_rotation_is_cut_as_in_peft(terms, inputs):
    wrapper = trained(zoo.OFTInLinear, linear(inputs, 4), 3, terms=terms)
    R = np.zeros((9, 9))
    for k, (a, b, c) in enumerate(np.asarray(wrapper.Q_packed, np.float64)):
        Q = np.array([[0, a, b], [-a, 0, c], [-b, -c, 0]])
        exists = np.arange(3 * k, 3 * k + 3) < inputs
        R[3 * k : 3 * k + 3, 3 * k : 3 * k + 3] = truncated(Q * np.outer(exists, exists), terms)
    check(wrapper, matrix_of(wrapper.base) @ R[:inputs, :inputs])


@pytest.mark.parametrize("terms", [None, 5])
def test_one_rotation_may_serve_all_blocks(terms):
    wrapper = trained(zoo.OFTInLinear, linear(6, 4), 3, block_share=True, terms=terms)
    assert wrapper.Q_packed.shape == (1, 3)
    check(wrapper)


@pytest.mark.parametrize(
    ("cls", "rank", "options", "message"),
    [
        (zoo.OFTInLinear, 1, {}, "give a rank of 2 or more"),
        (zoo.OFTLinear, 1, {}, "give a rank of 2 or more"),
        (zoo.OFTInLinear, 4, {"block_share": True}, "the rank must divide 6 inputs, but is 4"),
        (zoo.OFTInLinear, 2, {"terms": 1}, "a whole number above 1, but is 1"),
        (zoo.BOFTLinear, 2, {"factors": 4}, "from 1 to 3 for 6 inputs in blocks of 2, but is 4"),
        (zoo.BOFTLinear, 3, {"factors": 2}, "give an even rank or `factors` 1"),
        (zoo.PSOFTLinear, 1, {"scale_inputs": False, "scale_outputs": False}, "would train: give"),
        (zoo.RoAdLinear, 2, {"per_pair": 3}, "must be 1, 2 or 4, but is 3"),
        (zoo.RoAdLinear, 2, {"group_size": 3}, "divide the 4 outputs, but is 3"),
    ],
)
def test_impossible_options_are_refused(cls, rank, options, message):
    with pytest.raises(ValueError, match=message):
        cls(linear(6, 4), rank, 1.0, key=KEY, **options)


def test_a_layer_with_one_input_stays_as_it_is():
    base, x = linear(1, 4), jnp.ones(1)
    wrapper = zoo.OFTInLinear(base, 1, 1.0, key=KEY)
    assert wrapper.Q_packed.shape == (1, 0)
    assert_close(wrapper(x), base(x), 1e-7)
    assert_close(trained(zoo.HRALinear, base, 2)(x), base(x), 1e-6)
    with pytest.raises(ValueError, match="2 vectors cannot be orthonormal where there are 1 in"):
        zoo.HRALinear(base, 2, 1.0, key=KEY, gram_schmidt=True)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_equal_reflections_cancel_without_a_rounding(dtype):
    with jax.enable_x64(True):
        for inputs, outputs, r in ((4, 6, 2), (33, 17, 6), (128, 64, 16)):
            base = eqx.nn.Linear(inputs, outputs, dtype=dtype, key=KEY)
            adapted = apply_lora(base, r, key=KEY, wrapper="hra")
            np.testing.assert_array_equal(merge_lora(adapted).weight, base.weight)
            x = jnp.ones(inputs, dtype)
            np.testing.assert_array_equal(adapted(x), base(x))


def test_the_sizes_of_neighbouring_vectors_do_not_matter():
    wrapper = trained(zoo.HRALinear, linear(6, 4), 4)
    expected = matrix_of(wrapper.merge())
    for sizes in ((1e4, 1.0, 1.0, 1e4), (1e-4, 1e4, 3.0, 1e-3)):
        resized = eqx.tree_at(lambda m: m.U, wrapper, wrapper.U * jnp.array([sizes]))
        assert_close(matrix_of(resized.merge()), expected, 1e-6)


@pytest.mark.parametrize("r", [2, 4])
def test_orthonormal_reflections_are_one_projection(r):
    wrapper = trained(zoo.HRALinear, linear(6, 4), r, gram_schmidt=True)
    Q, _ = np.linalg.qr(np.asarray(wrapper.U, np.float64))
    check(wrapper, matrix_of(wrapper.base) @ (np.eye(6) - 2 * Q @ Q.T))


def test_an_odd_number_of_reflections_has_a_partner_that_reflects_nothing():
    wrapper = trained(zoo.HRALinear, linear(6, 4), 3)
    assert wrapper.U.shape == (6, 4)
    three = eqx.tree_at(lambda w: w.U, wrapper, wrapper.U.at[:, 3].set(0))
    W = matrix_of(wrapper.base)
    for u in np.asarray(three.U, np.float64).T[:3]:
        W = W - 2 * np.outer(W @ u, u) / (u @ u)
    check(three, W)
    gradient = jax.grad(lambda U: jnp.sum(eqx.tree_at(lambda w: w.U, three, U)(jnp.ones(6))))
    assert np.isfinite(gradient(three.U)).all()


@pytest.mark.parametrize(
    ("inputs", "rank", "factors"),
    [(16, 4, 3), (13, 3, 1), (13, 4, 2), (13, 2, 3)],
)
def test_a_butterfly_has_as_many_factors_as_told(inputs, rank, factors):
    wrapper = trained(zoo.BOFTLinear, linear(inputs, 5), rank, factors=factors)
    assert len(wrapper.Q_blocks) == factors
    check(wrapper)


@pytest.mark.parametrize(
    ("per_pair", "group_size", "shape"),
    [(1, 2, (1, 4, 1)), (2, None, (2, 1, 4)), (2, 4, (2, 2, 2)), (4, 4, (4, 2, 2))],
)
def test_pairs_have_one_two_or_four_angles(per_pair, group_size, shape):
    base = linear(3, 8)
    wrapper = trained(zoo.RoAdLinear, base, 2, per_pair=per_pair, group_size=group_size)
    assert wrapper.theta.shape == shape
    check(wrapper)
    # As if the bias were one more column of the weight.
    R = reference("RoAd", fields_of(wrapper), np.eye(8), 2, 1.0)
    assert_close(wrapper.merge().bias, R @ np.asarray(base.bias), 1e-5)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_a_small_turn_survives_half_precision(dtype):
    base = eqx.nn.Linear(1, 2, use_bias=False, key=KEY, dtype=dtype)
    base = eqx.tree_at(lambda m: m.weight, base, jnp.array([[256.0], [0.0]], dtype))
    wrapper = zoo.RoAdLinear(base, 2, 1.0, key=KEY)
    wrapper = eqx.tree_at(lambda w: w.theta, wrapper, jnp.full((1, 1, 1), 1e-3))
    y = wrapper(jnp.ones(1, dtype))
    assert y.dtype == dtype
    assert float(y[1]) == pytest.approx(0.256, rel=1e-2)


@pytest.mark.parametrize("inject", [True, False])
@pytest.mark.parametrize("orthogonal", [True, False])
def test_a_projection_is_plain_or_orthogonal_with_or_without_an_injection(orthogonal, inject):
    base, options = linear(6, 5), {"inject": inject, "orthogonal": orthogonal}
    wrapper = trained(zoo.DEFTLinear, base, 2, **options)
    W, P = matrix_of(base), np.asarray(wrapper.P, np.float64)
    Q, triangle = np.linalg.qr(P)
    left = Q * np.sign(np.diag(triangle)) if orthogonal else P
    right = left if orthogonal else np.maximum(P, 0)
    injected = left @ np.asarray(wrapper.R, np.float64) if inject else 0.0
    check(wrapper, W - left @ right.T @ W + injected)
    # An injection starts as what is taken away.
    start = matrix_of(zoo.DEFTLinear(base, 2, 1.0, key=KEY, **options).merge())
    assert (np.max(np.abs(start - W)) < 1e-6) == inject


@pytest.mark.parametrize(
    ("terms", "scale_inputs", "scale_outputs"),
    [(None, True, False), (None, False, True), (5, True, True), (5, False, False)],
)
def test_a_principal_rotation_may_lack_scales_and_be_a_series(terms, scale_inputs, scale_outputs):
    options = {"scale_inputs": scale_inputs, "scale_outputs": scale_outputs, "terms": terms}
    wrapper = trained(zoo.PSOFTLinear, linear(6, 5), 2, **options)
    (q,) = np.asarray(wrapper.Q_packed, np.float64)
    Q = np.array([[0, q], [-q, 0]])
    R = truncated(Q, terms) if terms else (np.eye(2) - Q) @ np.linalg.inv(np.eye(2) + Q)
    if scale_inputs:
        R = R * np.asarray(wrapper.a)[None, :]
    if scale_outputs:
        R = R * np.asarray(wrapper.b)[:, None]
    W, B, A = matrix_of(wrapper.base), np.asarray(wrapper.lora_B), np.asarray(wrapper.lora_A)
    check(wrapper, W + B @ (R - np.eye(2)) @ A)
    U, S, Vt = np.linalg.svd(W)  # the subspace is that of the weight
    assert_close(B @ A, U[:, :2] * S[:2] @ Vt[:2], 1e-5)
    assert_close(A @ A.T, np.eye(2), 1e-5)


@pytest.mark.parametrize(("inputs", "outputs", "r"), [(6, 5, 2), (6, 5, 5), (3, 7, 3), (4, 1, 1)])
def test_olora_starts_with_an_orthonormal_basis_and_keeps_the_model(inputs, outputs, r):
    base = linear(inputs, outputs)
    wrapper = zoo.OLoRALinear(base, r, 4.0, key=KEY)
    Q, R = np.linalg.qr(matrix_of(base))
    assert_close(wrapper.lora_B @ wrapper.lora_A, Q[:, :r] @ R[:r], 1e-5)
    assert_close(wrapper.lora_B.T @ wrapper.lora_B, np.eye(r), 1e-5)
    assert_close(matrix_of(wrapper.merge()), matrix_of(base), 1e-5)


@pytest.mark.parametrize("method", ["OFTIn", "HRA", "BOFT", "RoAd", "PSOFT", "DEFT"])
def test_a_step_of_a_linear_layer_builds_no_adapted_weight(method):
    out, inputs = 20, 12
    wrapper = trained(getattr(zoo, f"{method}Linear"), linear(inputs, out), 2)
    trainable, frozen = eqx.partition(wrapper, lora_trainable_filter(wrapper))
    x = jnp.ones((7, inputs))

    def loss(trainable):
        return jnp.sum(jax.vmap(eqx.combine(trainable, frozen))(x))

    shapes = shapes_in_jaxpr(jax.grad(loss), trainable)
    assert (7, out) in shapes
    assert not shapes & {(out, inputs), (inputs, out), (inputs, inputs), (out, out)}


OFT, LOKR = Adapter("OFT", "Linear"), Adapter("LoKr", "Linear")


@pytest.mark.parametrize(
    ("out", "rank", "size"), [(8, 4, 1.0), (7, 5, 1000.0), (3, 9, 1.0), (37, 16, 1000.0)]
)
def test_the_blocks_are_rotations(out, rank, size):
    identity = eqx.tree_at(lambda m: m.weight, linear(out, out), jnp.eye(out))
    R = matrix_of(perturb(build(OFT, identity, rank=rank), size).merge())
    assert_close(R @ R.T, np.eye(out), 1e-5)
    assert np.linalg.det(R) > 0
    assert np.max(np.abs(R - np.eye(out))) > 0.05
    # Nothing leaves its block.
    block = np.arange(out) // min(rank, out)
    assert not np.any(R[block[:, None] != block[None, :]])


@pytest.mark.parametrize("rank", [4, 5])
def test_no_dense_rotation_is_built(rank):
    out, inputs = 12, 3
    wrapper = perturb(build(OFT, linear(inputs, out), rank=rank))
    for compute in (lambda w, x: w(x), lambda w, x: w.merge()(x)):
        shapes = shapes_in_jaxpr(compute, wrapper, jnp.ones(3))
        assert (-(-out // rank), rank, rank) in shapes
        assert not [shape for shape in shapes if sum(size >= out for size in shape) >= 2]


def test_a_rank_of_one_is_possible_for_one_output():
    assert build(OFT, linear(2, 1), rank=1).Q_blocks.shape == (1, 1, 1)


@pytest.mark.parametrize(("out", "inputs", "rank"), [(8, 7, 3), (7, 9, 4), (6, 5, 5), (5, 12, 1)])
def test_the_product_of_lokr_is_cut_to_the_weight_and_never_formed_in_a_step(out, inputs, rank):
    wrapper = perturb(build(LOKR, linear(inputs, out), rank=rank))
    x = jnp.linspace(-1, 1, inputs)
    shapes = shapes_in_jaxpr(lambda w, x: w(x), wrapper, x)
    if rank == 1:  # B itself is as large as the weight, and is transposed
        shapes -= {wrapper.kron_B.shape, wrapper.kron_B.T.shape}
    assert max(np.prod(shape, dtype=int) for shape in shapes) < out * inputs
    A, B = (np.asarray(a).astype(np.float64) for a in (wrapper.kron_A, wrapper.kron_B))
    update = 3.0 / rank * np.kron(A, B)[:out, :inputs]
    merged = wrapper.merge()
    assert_close(matrix_of(merged) - matrix_of(wrapper.base), update, 1e-5)
    assert_close(wrapper(x), merged(x), 1e-5)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_small_changes_of_a_convolution_survive_half_precision(dtype):
    x = jnp.array([[100.0], [-100.0]], dtype)
    for cls, make in (
        (zoo.LoKrConv, eqx.nn.Conv1d),
        (zoo.LoKrConvTranspose, eqx.nn.ConvTranspose1d),
    ):
        base = make(2, 2, 1, use_bias=False, key=KEY, dtype=dtype)
        base = eqx.tree_at(lambda m: m.weight, base, jnp.ones_like(base.weight))
        wrapper = cls(base, 2, 2.0, key=KEY)
        arrays = (jnp.eye(2), jnp.array([[1e-3]]))
        wrapper = eqx.tree_at(lambda w: (w.kron_A, w.kron_B), wrapper, arrays)
        # The weights cancel, and 1 + 1e-3 is 1 in half precision or nearly so.
        y = wrapper(x).astype(jnp.float32)
        np.testing.assert_allclose(y, [[0.1], [-0.1]], rtol=1e-2)
    base = eqx.nn.Conv1d(2, 2, 1, use_bias=False, key=KEY, dtype=dtype)
    weight = jnp.array([[[1.0], [1.0]], [[1.0], [-1.0]]], dtype)
    wrapper = zoo.OFTConv(eqx.tree_at(lambda m: m.weight, base, weight), 2, 1.0, key=KEY)
    turn = jnp.array([[[0.0, 1e-4], [-1e-4, 0.0]]])
    wrapper = eqx.tree_at(lambda w: w.Q_blocks, wrapper, turn)
    # The first output is 0 and the second 200, of which a rotation by 2e-4 gives it a little. In
    # the weights, which are 1, it would be rounded away.
    y = wrapper(x).astype(jnp.float32)
    assert abs(float(y[0, 0])) == pytest.approx(0.04, rel=1e-2)
