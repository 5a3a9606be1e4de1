"""How each method starts, as its paper says: random factors, parts of the weight, and data."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from zoo_cases import Adapter, adapters, assert_close, build, case, cast_floats, fields_of, perturb
from zoo_cases.laws import triplets
from zoo_cases.laws_from_data import (
    corda_part,
    input_directions,
    lora_ga_part,
    lora_one_part,
    null_part,
    statistics_for,
)
from zoo_cases.layers import matrix_of, with_matrix

from jno.lora import WrapperError, apply_lora, lora_trainable_filter

VALUE = 1e-11
PLAIN = case("Linear", "plain")
# Wide enough for statistics: matrices of (64, 96).
WIDE = {
    "Linear": lambda key: eqx.nn.Linear(96, 64, key=key),
    "Conv": lambda key: eqx.nn.Conv1d(32, 64, 3, key=key),
}


def assert_normal(sample, variance):
    """Mean, variance and fourth moment are those of a normal distribution, within 5 sigma."""
    z = np.asarray(sample).ravel() / np.sqrt(variance)
    n = z.size
    assert abs(np.mean(z)) < 5 / np.sqrt(n)
    assert abs(np.mean(z**2) - 1) < 5 * np.sqrt(2 / n)
    assert abs(np.mean(z**4) - 3) < 5 * np.sqrt(96 / n)


@pytest.mark.parametrize(
    ("method", "kind"),
    [("LoRA", "Linear"), ("rsLoRA", "Conv"), ("LoRAFA", "Linear"), ("DoRA", "Conv")],
)
def test_lora_a_is_normal_with_variance_one_over_inputs_and_lora_b_is_zero(method, kind):
    wrapper = build(Adapter(method, kind), WIDE[kind](jax.random.key(0)), rank=32)
    assert wrapper.lora_A.shape == (32, 96)
    assert_normal(wrapper.lora_A, 1 / 96)
    assert not np.any(wrapper.lora_B)


def test_kron_a_is_normal_with_variance_one_over_rank_and_kron_b_is_zero():
    wrapper = build(Adapter("LoKr", "Linear"), WIDE["Linear"](jax.random.key(0)), rank=48)
    assert wrapper.kron_A.shape == (48, 48)
    assert_normal(wrapper.kron_A, 1 / 48)
    assert not np.any(wrapper.kron_B)


def started(adapter, base=PLAIN, **options):
    """The adapter in double precision, its arrays by name, the base's matrix, and the scale."""
    adapter = Adapter(adapter, "Linear") if isinstance(adapter, str) else adapter
    with jax.enable_x64(True):
        wrapper = build(adapter, cast_floats(base.layer, jnp.float64), rank=base.rank, **options)
        return wrapper, fields_of(wrapper), base.matrix(), wrapper.alpha / wrapper.rank


@adapters("PiSSA", "MiLoRA", "LoRANull", linear=("plain", "one_output"), conv=("groups", "duck"))
def test_a_part_of_the_weight_is_split_between_base_and_factors(adapter, base):
    wrapper, fields, W, scale = started(adapter, base)
    r, n = wrapper.rank, min(W.shape)
    if adapter.method == "LoRANull":  # the part that reads the null space
        part = null_part(W, r)
    else:
        part = triplets(W, slice(0, r) if adapter.method == "PiSSA" else slice(n - r, n))
    largest = np.max(np.abs(W))
    assert_close(scale * fields.lora_B @ fields.lora_A, part, VALUE, scale=largest)
    assert_close(matrix_of(wrapper.base), W - part, VALUE, scale=largest)
    # Each factor carries the root of the singular values, and the copies are what trains at first.
    S = np.diag(np.linalg.svd(part, compute_uv=False)[:r]) / scale
    assert_close(fields.lora_B.T @ fields.lora_B, S, VALUE)
    assert_close(fields.lora_A @ fields.lora_A.T, S, VALUE)
    assert np.array_equal(fields.initial_A, fields.lora_A)
    assert np.array_equal(fields.initial_B, fields.lora_B)


def test_lora_xs_stands_between_the_principal_directions():
    wrapper, fields, W, _ = started("LoRAXS")
    r = wrapper.rank
    assert_close(fields.lora_A @ fields.lora_A.T, np.eye(r), VALUE)
    S = np.linalg.svd(W, compute_uv=False)[:r]
    assert_close(fields.lora_B.T @ fields.lora_B, np.diag(S**2), VALUE)
    assert_close(fields.lora_B @ fields.lora_A, triplets(W, slice(0, r)), VALUE)


def test_eva_starts_at_the_principal_directions_of_the_inputs_and_may_whiten_them():
    for svd in ("exact", "randomized"):
        _, fields, W, _ = started("EVA", svd=svd)
        _, directions = input_directions(W, 2)
        # Vectors have a free sign.
        assert_close(np.abs(fields.lora_A @ directions.T), np.eye(2), 1e-6)
        assert_close(fields.lora_A @ fields.lora_A.T, np.eye(2), VALUE)
        assert not np.any(fields.lora_B)
    _, fields, *_ = started("EVA", whiten=True)
    made = statistics_for(("input_covariance", "input_mean"), *W.shape)
    mean = made["input_mean"].astype(np.float64)
    covariance = made["input_covariance"].astype(np.float64) - np.outer(mean, mean)
    assert_close(fields.lora_A @ covariance @ fields.lora_A.T, np.eye(2), VALUE)


@pytest.mark.parametrize("mode", ["instruction-previewed", "knowledge-preserved"])
def test_corda_splits_the_weight_by_triplets_that_the_data_choose(mode):
    wrapper, fields, W, scale = started("CorDA", mode=mode)
    part = corda_part(W, 2, largest=mode == "instruction-previewed")
    assert_close(scale * fields.lora_B @ fields.lora_A, part, VALUE)
    assert_close(matrix_of(wrapper.base), W - part, VALUE)
    # The values are in both factors alike: `B^T B` is `S / s`, and so is `A C C A^T`.
    covariance = statistics_for(("input_covariance",), *W.shape)["input_covariance"]
    C = covariance.astype(np.float64)
    C = C / np.mean(np.diag(C)) + 0.01 * np.eye(len(C))
    S = np.linalg.svd(W @ C, compute_uv=False)
    S = np.diag(S[:2] if mode == "instruction-previewed" else S[-2:]) / scale
    assert_close(fields.lora_B.T @ fields.lora_B, S, VALUE)
    assert_close(fields.lora_A @ C @ C @ fields.lora_A.T, S, VALUE)
    # The unit of the inputs does not matter.
    scaled = {"input_covariance": jnp.asarray(1024 * covariance)}
    _, again, *_ = started("CorDA", mode=mode, statistics=scaled)
    assert_close(again.lora_A, fields.lora_A, VALUE)
    assert_close(again.lora_B, fields.lora_B, VALUE)


@pytest.mark.parametrize("gamma", [16.0, 64])
def test_the_first_step_of_lora_ga_is_the_best_that_its_rank_allows(gamma):
    wrapper, fields, W, scale = started("LoRAGA", gamma=gamma)
    A, B = fields.lora_A, fields.lora_B
    G = statistics_for(("gradient",), *W.shape)["gradient"].astype(np.float64)
    assert_close(B @ A, lora_ga_part(fields, W, 2, gamma), VALUE)
    assert_close(matrix_of(wrapper.base), W - scale * B @ A, VALUE)
    # A step of gradient descent in both factors moves their product along the best approximation
    # of the gradient whose rank is twice theirs.
    best = triplets(G, slice(0, 4))
    assert_close(B @ B.T @ G + G @ A.T @ A, np.sqrt(len(W)) / gamma * best, VALUE)


def test_lora_one_starts_along_the_negative_gradient_or_with_the_step_of_its_paper():
    wrapper, fields, W, scale = started("LoRAOne", gamma=4.0)
    update = scale * lora_one_part(W, 2, gamma=4.0)
    assert_close(scale * fields.lora_B @ fields.lora_A, update, VALUE)
    assert_close(fields.lora_B.T @ fields.lora_B, fields.lora_A @ fields.lora_A.T, VALUE)
    assert_close(matrix_of(wrapper.base), W - update, VALUE)

    wrapper, *_ = started("LoRAOne", step=True)
    with jax.enable_x64(True):
        assert_close(matrix_of(wrapper.merge()), W + scale * lora_one_part(W, 2), VALUE)
        original = cast_floats(PLAIN.layer, jnp.float64)
        assert eqx.tree_equal(wrapper.unwrap(), original)
        trained = perturb(wrapper)
        merged = matrix_of(trained.merge())
        restored = type(wrapper).from_state(original, trained.state(), 2, wrapper.alpha)
        assert_close(matrix_of(restored.merge()), merged, 0)
        A, B, *_ = trained.low_rank_form()
        assert_close(B @ A, merged - W, VALUE)


def test_lora_null_with_frozen_A_keeps_the_outputs_of_earlier_inputs():
    X = np.random.default_rng(5).normal(size=(20, 4)) @ np.eye(6)[2:]
    with jax.enable_x64(True):
        made = {"input_covariance": jnp.asarray(X.T @ X / 20)}
        wrapper = started("LoRANull", statistics=made)[0]
        layer = cast_floats(PLAIN.layer, jnp.float64)
        moved = eqx.tree_at(lambda w: w.lora_B, wrapper, wrapper.lora_B + 1)
        assert_close(jax.vmap(moved)(X), jax.vmap(layer)(X), VALUE)
        new = np.eye(6)[0]
        assert np.max(np.abs(moved(new) - layer(new))) > 0.01


def data_of_rank(rank, needs, out, inputs):
    """Statistics of data of this rank."""
    rng = np.random.default_rng(3)
    X = rng.normal(size=(20, rank)) @ rng.normal(size=(rank, inputs))
    G = rng.normal(size=(out, rank)) @ rng.normal(size=(rank, inputs))
    made = {"input_covariance": X.T @ X / 20, "input_mean": X.mean(axis=0), "gradient": G}
    return {name: jnp.asarray(made[name], jnp.float32) for name in needs}


@pytest.mark.parametrize(
    ("method", "options"),
    [
        *(("PiSSA", {}), ("MiLoRA", {}), ("LoRAXS", {}), ("LoRANull", {})),
        *(("EVA", {"svd": "exact"}), ("EVA", {"svd": "randomized"}), ("EVA", {"whiten": True})),
        *((method, {"svd": "randomized"}) for method in ("CorDA", "LoRAGA", "LoRAOne")),
    ],
)
def test_weights_and_data_of_a_lower_rank_give_finite_numbers(method, options):
    cls = Adapter(method, "Linear").cls
    for rank, base in ((0, PLAIN), (1, PLAIN), (0, case("Linear", "one_output"))):
        x, W = base.arguments(), base.matrix()
        if cls.needs:
            options = {**options, "statistics": data_of_rank(rank, cls.needs, *W.shape)}
        else:
            W[rank:] = 0
        layer = with_matrix(base.layer, W)
        wrapper = build(Adapter(method, "Linear"), layer, **options)
        assert_close(wrapper(*x), layer(*x), 1e-5)
        parts = eqx.partition(perturb(wrapper), lora_trainable_filter(wrapper))
        gradients = jax.grad(lambda *parts, x=x: jnp.sum(eqx.combine(*parts)(*x)))(*parts)
        for leaf in jax.tree.leaves((wrapper, gradients)):
            assert np.isfinite(leaf).all()


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16], ids=["bfloat16", "float16"])
@pytest.mark.parametrize("method", ["PiSSA", "MiLoRA", "LoRAXS"])
def test_half_precision_weights_are_decomposed_in_float32(method, dtype):
    layer = cast_floats(PLAIN.layer, dtype)
    fields, W = fields_of(build(Adapter(method, "Linear"), layer)), matrix_of(layer)
    scale = 1 if method == "LoRAXS" else 3.0 / 2
    expected = triplets(W, slice(3, 5) if method == "MiLoRA" else slice(0, 2))
    assert_close(scale * fields.lora_B @ fields.lora_A, expected, 1e-5)


@pytest.mark.parametrize(
    ("variant", "number"), [("pissa", jnp.nan), ("olora", jnp.inf), ("lora-xs", jnp.nan)]
)
def test_a_decomposition_of_nan_is_an_error_that_names_the_array(variant, number):
    layer = eqx.nn.Linear(4, 3, key=jax.random.key(0))
    broken = eqx.tree_at(lambda layer: layer.weight, layer, layer.weight.at[0, 1].set(number))
    with pytest.raises(WrapperError, match=r"Linear at 'b'.*its weight holds NaN or infinity"):
        apply_lora({"a": layer, "b": broken}, 2, key=jax.random.key(0), wrapper=variant)


@pytest.mark.parametrize(
    ("method", "settings", "message"),
    [
        *(
            ("LoRAGA", {"gamma": gamma}, "`gamma` must be a positive number, but is")
            for gamma in (0, True, float("inf"))
        ),
        ("LoRAOne", {"gamma": 0}, "`gamma` must be a positive number, but is"),
        ("CorDA", {"mode": "kpm"}, "'instruction-previewed' or 'knowledge-preserved', but"),
        ("CorDA", {"alpha": 0.0}, "CorDALinear divides by its scale, so alpha must be"),
        ("PiSSA", {"alpha": -1.0}, "alpha must be greater than 0"),
        ("EVA", {"statistics": None}, "`statistics=` must hold input_covariance, input_mean, as"),
    ],
)
def test_settings_that_are_refused(method, settings, message):
    with pytest.raises(ValueError, match=message):
        build(Adapter(method, "Linear"), PLAIN, **settings)
