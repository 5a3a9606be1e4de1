"""Rotations, reflections and projections: their options, and the paths that they take.

`test_oracles.py` checks that the defaults compute their laws. Every law here is in NumPy.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from zoo_cases import assert_close, perturb, shapes_in_jaxpr
from zoo_cases.laws import fields_of, reference
from zoo_cases.laws_turned import truncated
from zoo_cases.layers import matrix_of

import jno_lora_zoo as zoo
from jno.lora import lora_trainable_filter

KEY = jax.random.key(2)


def linear(inputs, outputs):
    return eqx.nn.Linear(inputs, outputs, key=KEY)


def trained(cls, base, rank, size=0.4, **options):
    return perturb(cls(base, rank, 1.0, key=KEY, **options), size)


@eqx.filter_jit  # one program in the place of many operations
def merged_and_outputs(wrapper, x):
    merged = wrapper.merge()
    return merged, wrapper(x), merged(x)


def check(wrapper, W):
    """The merged weight is `W`, and the wrapper computes with it."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=wrapper.base.in_features), jnp.float32)
    merged, y, expected = merged_and_outputs(wrapper, x)
    assert_close(matrix_of(merged), W, 1e-5)
    assert_close(y, expected, 1e-5)


def check_restored(wrapper):
    """The options that the saved arrays show make an adapter with the same arrays, and law."""
    cls, state = type(wrapper), wrapper.state()
    options = cls.options_of(state)
    again = cls(wrapper.base, wrapper.rank, wrapper.alpha, key=KEY, **options)
    assert {n: x.shape for n, x in again.state().items()} == {n: x.shape for n, x in state.items()}
    names = list(state)
    filled = eqx.tree_at(lambda w: [getattr(w, n) for n in names], again, list(state.values()))
    x = jnp.zeros(wrapper.base.in_features)  # as `check` calls the program
    actual, expected = (merged_and_outputs(one, x)[0] for one in (filled, wrapper))
    assert_close(matrix_of(actual), matrix_of(expected), 1e-7)


@pytest.mark.parametrize(("terms", "inputs"), [(2, 6), (3, 6), (4, 6), (5, 6), (8, 6), (5, 7)])
def test_the_series_of_the_rotation_is_cut_as_in_peft(terms, inputs):
    wrapper = trained(zoo.OFTInLinear, linear(inputs, 4), 3, terms=terms)
    R = np.zeros((9, 9))
    for k, (a, b, c) in enumerate(np.asarray(wrapper.Q_packed, np.float64)):
        Q = np.array([[0, a, b], [-a, 0, c], [-b, -c, 0]])
        exists = np.arange(3 * k, 3 * k + 3) < inputs
        R[3 * k : 3 * k + 3, 3 * k : 3 * k + 3] = truncated(Q * np.outer(exists, exists), terms)
    check(wrapper, matrix_of(wrapper.base) @ R[:inputs, :inputs])
    check_restored(wrapper)


def test_many_terms_are_the_rotation():
    exact, series = (
        trained(zoo.OFTInLinear, linear(6, 4), 3, 0.1, terms=terms) for terms in (None, 30)
    )
    assert_close(matrix_of(series.merge()), matrix_of(exact.merge()), 1e-6)


@pytest.mark.parametrize("terms", [None, 5])
def test_one_rotation_may_serve_all_blocks(terms):
    wrapper = trained(zoo.OFTInLinear, linear(6, 4), 3, block_share=True, terms=terms)
    assert wrapper.Q_packed.shape == (1, 3)
    fields = fields_of(wrapper)
    check(wrapper, reference("OFTIn", fields, matrix_of(wrapper.base), 3, 1.0))
    check_restored(wrapper)


def test_inputs_are_rotated_by_rotations():
    base = linear(7, 7)
    base = eqx.tree_at(lambda m: m.weight, base, jnp.eye(7))
    for cls in (zoo.OFTInLinear, zoo.HRALinear):
        R = matrix_of(trained(cls, base, 4, 10.0).merge())
        assert_close(R @ R.T, np.eye(7), 1e-5)
        assert np.max(np.abs(R - np.eye(7))) > 0.1


@pytest.mark.parametrize(
    ("cls", "rank", "options", "message"),
    [
        (zoo.OFTInLinear, 1, {}, "give a rank of 2 or more"),
        (zoo.OFTInLinear, 4, {"block_share": True}, "the rank must divide the 6 inputs, but is 4"),
        (zoo.OFTInLinear, 2, {"terms": 1}, "a whole number above 1, but is 1"),
        (zoo.PSOFTLinear, 2, {"terms": 0}, "a whole number above 1, but is 0"),
        (zoo.BOFTLinear, 2, {"factors": 0}, "from 1 to 3 for 6 inputs in blocks of 2, but is 0"),
        (zoo.BOFTLinear, 2, {"factors": 4}, "from 1 to 3 for 6 inputs in blocks of 2, but is 4"),
        (zoo.BOFTLinear, 9, {"factors": 2}, "from 1 to 1 for 6 inputs in blocks of 6, but is 2"),
        (zoo.BOFTLinear, 2, {"factors": 2.0}, "`factors` must be a whole number .* but is 2.0"),
        (zoo.BOFTLinear, 2, {"factors": True}, "`factors` must be a whole number .* but is True"),
        (zoo.HRALinear, 7, {"gram_schmidt": True}, "there are 6 inputs: give a rank of at most 6"),
        (
            zoo.PSOFTLinear,
            1,
            {"scale_inputs": False, "scale_outputs": False},
            "nothing would train: give a rank of 2 or more",
        ),
        (zoo.BOFTLinear, 3, {"factors": 2}, "give an even rank or `factors` 1"),
        (zoo.RoAdLinear, 2, {"per_pair": 3}, "must be 1, 2 or 4, but is 3"),
        (zoo.RoAdLinear, 2, {"group_size": 3}, "divide the 4 outputs, but is 3"),
        (zoo.RoAdLinear, 2, {"group_size": 8}, "divide the 4 outputs, but is 8"),
        (zoo.RoAdLinear, 2, {"group_size": 0}, "`group_size` must be a whole number .* but is 0"),
        (zoo.RoAdLinear, 2, {"group_size": 2.0}, "`group_size` must be a whole number .* is 2.0"),
        (zoo.RoAdLinear, 2, {"per_pair": 2.0}, "`per_pair` must be a whole number .* but is 2.0"),
    ],
)
def test_impossible_options_are_refused(cls, rank, options, message):
    with pytest.raises(ValueError, match=message):
        cls(linear(6, 4), rank, 1.0, key=KEY, **options)


def test_a_layer_with_one_input_stays_as_it_is():
    base = linear(1, 4)
    wrapper = zoo.OFTInLinear(base, 1, 1.0, key=KEY)
    assert wrapper.Q_packed.shape == (1, 0)
    assert_close(wrapper(jnp.ones(1)), base(jnp.ones(1)), 1e-7)


@pytest.mark.parametrize("r", [2, 4])
def test_orthonormal_reflections_are_one_projection(r):
    wrapper = trained(zoo.HRALinear, linear(6, 4), r, gram_schmidt=True)
    Q, _ = np.linalg.qr(np.asarray(wrapper.U, np.float64))
    check(wrapper, matrix_of(wrapper.base) @ (np.eye(6) - 2 * Q @ Q.T))
    check_restored(wrapper)


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


def test_reflections_may_outnumber_the_inputs():
    wrapper = trained(zoo.HRALinear, linear(3, 4), 10)
    check(wrapper, reference("HRA", fields_of(wrapper), matrix_of(wrapper.base), 10, 1.0))


@pytest.mark.parametrize(
    ("inputs", "rank", "factors"),
    [(16, 4, 1), (16, 4, 3), (13, 3, 1), (13, 4, 2), (13, 2, 3), (13, 4, 3)],
)
def test_a_butterfly_has_as_many_factors_as_told(inputs, rank, factors):
    wrapper = trained(zoo.BOFTLinear, linear(inputs, 5), rank, factors=factors)
    assert len(wrapper.Q_blocks) == factors
    check(wrapper, reference("BOFT", fields_of(wrapper), matrix_of(wrapper.base), rank, 1.0))
    check_restored(wrapper)


@pytest.mark.parametrize(
    ("inputs", "rank", "shape"),
    [(8, 8, (1, 1, 8, 8)), (5, 8, (1, 1, 5, 5)), (9, 8, (2, 2, 8, 8)), (8, 4, (2, 2, 4, 4))],
)
def test_a_butterfly_has_no_factor_that_rotates_nothing(inputs, rank, shape):
    base = linear(inputs, 5)
    wrapper = zoo.BOFTLinear(base, rank, 1.0, key=KEY)
    assert wrapper.Q_blocks.shape == shape
    factors, _, r, _ = shape
    h = 2 ** (factors - 1)
    trained = sum(x.size for x in (wrapper.Q_blocks, wrapper.s))
    assert trained == factors * h * r**2 * -(-inputs // (h * r)) + 5
    # The last factor mixes inputs that its predecessors keep apart.
    most = int(np.ceil(np.log2(inputs / r))) + 1
    zoo.BOFTLinear(base, rank, 1.0, key=KEY, factors=most if r % 2 == 0 else 1)
    with pytest.raises(ValueError, match=f"from 1 to {most} "):
        zoo.BOFTLinear(base, rank, 1.0, key=KEY, factors=most + 1)


def test_reflections_of_one_input_are_none():
    base = linear(1, 4)
    wrapper = trained(zoo.HRALinear, base, 2)
    assert_close(wrapper(jnp.ones(1)), base(jnp.ones(1)), 1e-6)
    with pytest.raises(ValueError, match="there are 1 inputs: leave out `gram_schmidt`"):
        zoo.HRALinear(base, 2, 1.0, key=KEY, gram_schmidt=True)


def test_every_factor_doubles_what_an_input_reaches():
    base = eqx.tree_at(lambda m: m.weight, linear(16, 16), jnp.eye(16))
    for factors, reached in ((1, 4), (2, 8), (3, 16)):
        wrapper = trained(zoo.BOFTLinear, base, 4, factors=factors)
        wrapper = eqx.tree_at(lambda w: w.s, wrapper, jnp.ones(16))
        F = matrix_of(wrapper.merge())
        assert_close(F @ F.T, np.eye(16), 1e-5)
        assert np.all(np.sum(np.abs(F) > 1e-9, axis=1) == reached)


@pytest.mark.parametrize("group_size", [None, 4, 2])
@pytest.mark.parametrize("per_pair", [1, 2, 4])
def test_pairs_have_one_two_or_four_angles(per_pair, group_size):
    base = linear(3, 8)
    wrapper = trained(zoo.RoAdLinear, base, 2, per_pair=per_pair, group_size=group_size)
    half = 4 if group_size is None else group_size // 2
    assert wrapper.theta.shape == (per_pair, 4 // half, half)
    fields, W, b = fields_of(wrapper), matrix_of(base), np.asarray(base.bias)
    check(wrapper, reference("RoAd", fields, W, 2, 1.0))
    # As if the bias were one more column of the weight.
    R = reference("RoAd", fields, np.eye(8), 2, 1.0)
    assert_close(wrapper.merge().bias, R @ b, 1e-5)
    check_restored(wrapper)


def test_an_output_without_a_partner_is_scaled():
    wrapper = trained(zoo.RoAdLinear, linear(3, 5), 2)
    W, new = matrix_of(wrapper.base), matrix_of(wrapper.merge())
    theta, scale = wrapper.theta[0, 0, 2], wrapper.scale[0, 0, 2]
    assert_close(new[2], scale * np.cos(theta) * W[2], 1e-5)


def test_pairs_within_a_group_of_a_convolution_are_rotated_after_it():
    base = eqx.nn.Conv1d(4, 8, 3, groups=2, key=KEY)
    x = jax.random.normal(KEY, (4, 6))
    for size, fast in ((4, True), (2, True), (8, False)):
        wrapper = trained(zoo.RoAdConv, base, 2, group_size=size)
        assert wrapper.has_fast_path() == fast
        assert_close(wrapper(x), wrapper.merge()(x), 1e-5)


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
    wrapper = trained(zoo.DEFTLinear, linear(6, 5), 2, inject=inject, orthogonal=orthogonal)
    W, P = matrix_of(wrapper.base), np.asarray(wrapper.P, np.float64)
    Q, triangle = np.linalg.qr(P)
    left = Q * np.sign(np.diag(triangle)) if orthogonal else P
    right = left if orthogonal else np.maximum(P, 0)
    injected = left @ np.asarray(wrapper.R, np.float64) if inject else 0.0
    check(wrapper, W - left @ right.T @ W + injected)
    check_restored(wrapper)


@pytest.mark.parametrize("orthogonal", [True, False])
def test_an_injection_starts_as_what_is_taken_away(orthogonal):
    base = linear(6, 5)
    wrapper = zoo.DEFTLinear(base, 2, 1.0, key=KEY, orthogonal=orthogonal)
    assert_close(matrix_of(wrapper.merge()), matrix_of(base), 1e-6)
    without = zoo.DEFTLinear(base, 2, 1.0, key=KEY, orthogonal=orthogonal, inject=False)
    assert np.max(np.abs(matrix_of(without.merge()) - matrix_of(base))) > 1e-5


@pytest.mark.parametrize(
    ("terms", "scale_inputs", "scale_outputs"),
    [(None, True, False), (None, False, True), (5, True, True), (5, False, False)],
)
def test_a_principal_rotation_may_lack_scales_and_be_a_series(terms, scale_inputs, scale_outputs):
    wrapper = trained(
        zoo.PSOFTLinear,
        linear(6, 5),
        2,
        scale_inputs=scale_inputs,
        scale_outputs=scale_outputs,
        terms=terms,
    )
    (q,) = np.asarray(wrapper.Q_packed, np.float64)
    Q = np.array([[0, q], [-q, 0]])
    R = truncated(Q, terms) if terms else (np.eye(2) - Q) @ np.linalg.inv(np.eye(2) + Q)
    if scale_inputs:
        R = R * np.asarray(wrapper.a)[None, :]
    if scale_outputs:
        R = R * np.asarray(wrapper.b)[:, None]
    W, B, A = matrix_of(wrapper.base), np.asarray(wrapper.lora_B), np.asarray(wrapper.lora_A)
    check(wrapper, W + B @ (R - np.eye(2)) @ A)
    check_restored(wrapper)


def test_a_principal_subspace_is_that_of_the_weight():
    base = linear(6, 5)
    wrapper = zoo.PSOFTLinear(base, 2, 1.0, key=KEY)
    U, S, Vt = np.linalg.svd(matrix_of(base))
    assert_close(wrapper.lora_B @ wrapper.lora_A, U[:, :2] * S[:2] @ Vt[:2], 1e-5)
    assert_close(wrapper.lora_A @ wrapper.lora_A.T, np.eye(2), 1e-5)


@pytest.mark.parametrize(("inputs", "outputs", "r"), [(6, 5, 2), (6, 5, 5), (3, 7, 3), (4, 1, 1)])
def test_olora_starts_with_an_orthonormal_basis_and_keeps_the_model(inputs, outputs, r):
    base = linear(inputs, outputs)
    wrapper = zoo.OLoRALinear(base, r, 4.0, key=KEY)
    Q, R = np.linalg.qr(matrix_of(base))
    assert_close(wrapper.lora_B @ wrapper.lora_A, Q[:, :r] @ R[:r], 1e-5)
    assert_close(wrapper.lora_B.T @ wrapper.lora_B, np.eye(r), 1e-5)
    assert_close(matrix_of(wrapper.merge()), matrix_of(base), 1e-5)
    assert_close(matrix_of(wrapper.unwrap()), matrix_of(base), 1e-5)


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


def test_a_lookup_scales_the_vector_that_it_reads():
    wrapper = trained(zoo.IA3InEmbedding, eqx.nn.Embedding(12, 5, key=KEY), 1)
    shapes = shapes_in_jaxpr(lambda w: w(jnp.array(7)), wrapper)
    assert not shapes & {(12, 5)} and (5,) in shapes
    for i in (7, -2):
        assert_close(wrapper(jnp.array(i)), wrapper.merge()(jnp.array(i)), 1e-6)


def test_a_lookup_rotates_the_block_that_it_reads():
    wrapper = trained(zoo.OFTInEmbedding, eqx.nn.Embedding(12, 5, key=KEY), 3)
    shapes = shapes_in_jaxpr(lambda w: w(jnp.array(7)), wrapper)
    assert (3, 3) in shapes
    assert (4, 3, 3) not in shapes
