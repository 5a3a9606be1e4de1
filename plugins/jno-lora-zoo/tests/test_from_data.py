"""EVA, CorDA, LoRA-GA, LoRA-One and LoRA-Null: their starts, options, and data without a rank.

Their laws, which hold the start that each takes out of the weight, are in `test_oracles.py`.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from zoo_cases import assert_close, build, cast_floats, fields_of, on_cases, pairs, perturb
from zoo_cases.laws_from_data import (
    corda_part,
    input_directions,
    lora_ga_part,
    lora_one_part,
    null_part,
    statistics_for,
)
from zoo_cases.layers import matrix_of

from jno.lora import lora_trainable_filter

FROM_DATA = ("EVA", "CorDA", "LoRAGA", "LoRAOne", "LoRANull")
VALUE = 1e-11


def on(*methods, linear=("plain",), conv=("groups",)):
    return on_cases(pairs(*methods, Linear=linear, Conv=conv))


def started(adapter, base, **options):
    """The adapter in double precision, its arrays by name, and the base's matrix."""
    with jax.enable_x64(True):
        wrapper = build(adapter, cast_floats(base.layer, jnp.float64), rank=2, **options)
        return wrapper, fields_of(wrapper), base.matrix()


def gradient_of(W):
    return statistics_for(("gradient",), *W.shape)["gradient"].astype(np.float64)


@pytest.mark.parametrize("svd", ["exact", "randomized"])
@on("EVA")
def test_eva_starts_at_the_principal_directions_of_the_inputs(adapter, base, svd):
    _, fields, W = started(adapter, base, svd=svd)
    _, directions = input_directions(W, 2)
    # Vectors have a free sign.
    assert_close(np.abs(fields.lora_A @ directions.T), np.eye(2), 1e-6)
    assert_close(fields.lora_A @ fields.lora_A.T, np.eye(2), VALUE)
    assert not np.any(fields.lora_B)


@on("EVA")
def test_eva_whitens_what_it_sees_of_the_inputs(adapter, base):
    _, fields, W = started(adapter, base, whiten=True)
    made = statistics_for(("input_covariance", "input_mean"), *W.shape)
    mean = made["input_mean"].astype(np.float64)
    covariance = made["input_covariance"].astype(np.float64) - np.outer(mean, mean)
    assert_close(fields.lora_A @ covariance @ fields.lora_A.T, np.eye(2), VALUE)


@pytest.mark.parametrize("mode", ["instruction-previewed", "knowledge-preserved"])
@on("CorDA")
def test_corda_splits_the_weight_by_triplets_that_the_data_choose(adapter, base, mode):
    wrapper, fields, W = started(adapter, base, mode=mode)
    part = corda_part(W, 2, largest=mode == "instruction-previewed")
    scale = wrapper.alpha / 2
    assert_close(scale * fields.lora_B @ fields.lora_A, part, VALUE)
    assert_close(matrix_of(wrapper.base), W - part, VALUE)
    # The values are in both factors alike: `B^T B` is `S / s`, and so is `A C C A^T`.
    C = statistics_for(("input_covariance",), *W.shape)["input_covariance"].astype(np.float64)
    C = C / np.mean(np.diag(C)) + 0.01 * np.eye(len(C))
    S = np.linalg.svd(W @ C, compute_uv=False)
    S = S[:2] if mode == "instruction-previewed" else S[-2:]
    assert_close(fields.lora_B.T @ fields.lora_B, np.diag(S / scale), VALUE)
    assert_close(fields.lora_A @ C @ C @ fields.lora_A.T, np.diag(S / scale), VALUE)


@on("CorDA")
def test_corda_does_not_depend_on_the_unit_of_the_inputs(adapter, base):
    covariance = statistics_for(("input_covariance",), *base.matrix().shape)["input_covariance"]
    starts = [
        started(adapter, base, statistics={"input_covariance": jnp.asarray(unit * covariance)})[1]
        for unit in (1, 1024)
    ]
    assert_close(starts[1].lora_A, starts[0].lora_A, VALUE)
    assert_close(starts[1].lora_B, starts[0].lora_B, VALUE)


@pytest.mark.parametrize("gamma", [16.0, 64])
@on("LoRAGA")
def test_the_first_step_of_lora_ga_is_the_best_that_its_rank_allows(adapter, base, gamma):
    wrapper, fields, W = started(adapter, base, gamma=gamma)
    A, B, G = fields.lora_A, fields.lora_B, gradient_of(W)
    assert_close(B @ A, lora_ga_part(fields, W, 2, gamma), VALUE)
    assert_close(matrix_of(wrapper.base), W - wrapper.alpha / 2 * B @ A, VALUE)
    # A step of gradient descent in both factors moves their product along the best approximation
    # of the gradient whose rank is twice theirs.
    U, S, Vt = np.linalg.svd(G, full_matrices=False)
    best = U[:, :4] @ np.diag(S[:4]) @ Vt[:4]
    assert_close(B @ B.T @ G + G @ A.T @ A, np.sqrt(len(W)) / gamma * best, VALUE)


@on("LoRAOne")
def test_lora_one_starts_along_the_negative_gradient(adapter, base):
    wrapper, fields, W = started(adapter, base, gamma=4.0)
    update = wrapper.alpha / 2 * lora_one_part(W, 2, gamma=4.0)
    assert_close(wrapper.alpha / 2 * fields.lora_B @ fields.lora_A, update, VALUE)
    assert_close(fields.lora_B.T @ fields.lora_B, fields.lora_A @ fields.lora_A.T, VALUE)
    assert_close(matrix_of(wrapper.base), W - update, VALUE)


@on("LoRAOne")
def test_lora_one_can_start_with_the_step_of_its_paper(adapter, base):
    wrapper, _, W = started(adapter, base, step=True)
    with jax.enable_x64(True):
        update = wrapper.alpha / 2 * lora_one_part(W, 2)
        assert_close(matrix_of(wrapper.merge()), W + update, VALUE)
        original = cast_floats(base.layer, jnp.float64)
        assert eqx.tree_equal(wrapper.unwrap(), original)
        trained = perturb(wrapper)
        merged = matrix_of(trained.merge())
        restored = adapter.cls.from_state(original, trained.state(), 2, wrapper.alpha)
        assert_close(matrix_of(restored.merge()), merged, 0)
        A, B = trained.low_rank_update()
        assert_close(B @ A, merged - W, VALUE)


@on("LoRANull")
def test_lora_null_splits_off_the_part_of_the_weight_that_reads_the_null_space(adapter, base):
    wrapper, fields, W = started(adapter, base)
    part, scale = null_part(W, 2), wrapper.alpha / 2
    assert_close(scale * fields.lora_B @ fields.lora_A, part, VALUE)
    assert_close(matrix_of(wrapper.base), W - part, VALUE)
    # The values are in both factors alike.
    S = np.diag(np.linalg.svd(part, compute_uv=False)[:2]) / scale
    assert_close(fields.lora_B.T @ fields.lora_B, S, VALUE)
    assert_close(fields.lora_A @ fields.lora_A.T, S, VALUE)


@on("LoRANull", conv=())
def test_lora_null_with_frozen_A_keeps_the_outputs_of_earlier_inputs(adapter, base):
    inputs = base.matrix().shape[1]
    X = np.random.default_rng(5).normal(size=(20, inputs - 2)) @ np.eye(inputs)[2:]
    with jax.enable_x64(True):
        made = {"input_covariance": jnp.asarray(X.T @ X / 20)}
        wrapper = started(adapter, base, statistics=made)[0]
        layer = cast_floats(base.layer, jnp.float64)
        moved = eqx.tree_at(lambda w: w.lora_B, wrapper, wrapper.lora_B + 1)
        assert_close(jax.vmap(moved)(X), jax.vmap(layer)(X), VALUE)
        new = np.eye(inputs)[0]
        assert np.max(np.abs(moved(new) - layer(new))) > 0.01


def of_rank(rank, needs, out, inputs):
    """Statistics of data of this rank."""
    rng = np.random.default_rng(3)
    X = rng.normal(size=(20, rank)) @ rng.normal(size=(rank, inputs))
    G = rng.normal(size=(out, rank)) @ rng.normal(size=(rank, inputs))
    made = {"input_covariance": X.T @ X / 20, "input_mean": X.mean(axis=0), "gradient": G}
    return {name: jnp.asarray(made[name], jnp.float32) for name in needs}


@pytest.mark.parametrize("svd", ["exact", "randomized"])
@pytest.mark.parametrize("rank", [0, 1])
@on("EVA", "CorDA", "LoRAGA", "LoRAOne", linear=("plain", "one_output"))
def test_data_of_a_lower_rank_give_finite_numbers(adapter, base, rank, svd):
    check_finite(adapter, base, rank, svd=svd)


@pytest.mark.parametrize("rank", [0, 1])
@on("LoRANull", linear=("plain", "one_output"))
def test_inputs_of_a_lower_rank_give_finite_numbers(adapter, base, rank):
    check_finite(adapter, base, rank)


@pytest.mark.parametrize("rank", [0, 1])
@on("EVA", conv=())
def test_whitened_data_of_a_lower_rank_give_finite_numbers(adapter, base, rank):
    check_finite(adapter, base, rank, whiten=True)


def check_finite(adapter, base, rank, **options):
    made = of_rank(rank, adapter.cls.needs, *base.matrix().shape)
    wrapper = build(adapter, base, statistics=made, **options)
    assert_close(wrapper(*base.arguments()), base.layer(*base.arguments()), 1e-5)
    trainable, frozen = eqx.partition(perturb(wrapper), lora_trainable_filter(wrapper))
    gradients = jax.grad(lambda t: jnp.sum(eqx.combine(t, frozen)(*base.arguments())))(trainable)
    for leaf in jax.tree.leaves((wrapper, gradients)):
        assert np.isfinite(leaf).all()


@pytest.mark.parametrize("gamma", [0, -1.0, True, "16", float("inf")])
@on("LoRAGA", "LoRAOne", conv=())
def test_gamma_must_be_a_positive_number(adapter, base, gamma):
    with pytest.raises(ValueError, match=r"`gamma` must be a positive number, but is"):
        build(adapter, base, gamma=gamma)


@on("CorDA", conv=())
def test_corda_refuses_wrong_statistics(adapter, base):
    with pytest.raises(ValueError, match="'instruction-previewed' or 'knowledge-preserved', but"):
        build(adapter, base, mode="kpm")
    with pytest.raises(ValueError, match="CorDALinear divides by its scale, so alpha must be"):
        build(adapter, base, alpha=0.0)


@on(*FROM_DATA, conv=())
def test_without_statistics_the_constructor_says_which_it_needs(adapter, base):
    names = ", ".join(adapter.cls.needs)
    with pytest.raises(ValueError, match=rf"starts from data: `statistics=` must hold {names}, as"):
        adapter.cls(base.layer, 2, 1.0, key=jax.random.key(0))
