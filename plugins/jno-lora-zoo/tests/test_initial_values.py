"""How each method starts, as its paper says."""

import equinox as eqx
import jax
import numpy as np
from zoo_cases import adapters, assert_close, build, each, fields_of
from zoo_cases.laws import triplets
from zoo_cases.layers import matrix_of

LAYERS = {"linear": ("plain", "one_output"), "conv": ("plain", "groups", "duck")}
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


@each("LoRA", "rsLoRA", "LoRAFA", "DoRA")
def test_lora_a_is_normal_with_variance_one_over_inputs_and_lora_b_is_zero(adapter):
    wrapper = build(adapter, WIDE[adapter.kind](jax.random.key(0)), rank=32)
    assert wrapper.lora_A.shape == (32, 96)
    assert_normal(wrapper.lora_A, 1 / 96)
    assert not np.any(wrapper.lora_B)


@each("LoKr")
def test_kron_a_is_normal_with_variance_one_over_rank_and_kron_b_is_zero(adapter):
    wrapper = build(adapter, WIDE[adapter.kind](jax.random.key(0)), rank=48)
    assert wrapper.kron_A.shape == (48, 48)
    assert_normal(wrapper.kron_A, 1 / 48)
    assert not np.any(wrapper.kron_B)


@adapters("LoRA", "rsLoRA", "LoRAFA", "DoRA", "LoKr", "VeRA")
def test_another_key_draws_other_numbers_and_the_same_key_the_same(adapter, base):
    name = {"LoKr": "kron_A", "VeRA": "seed"}.get(adapter.method, "lora_A")

    def draw(seed):
        wrapper = adapter.cls(base.layer, 2, 1.0, key=jax.random.key(seed))
        return np.asarray(getattr(wrapper, name)).tobytes()

    assert draw(0) == draw(0) != draw(1)


@adapters("DoRA", **LAYERS)
def test_doras_magnitudes_start_as_the_row_norms(adapter, base):
    norms = np.linalg.norm(base.matrix(), axis=1)
    assert_close(build(adapter, base).magnitude, norms, 1e-6)


@adapters("IA3", "OFT", "VeRA", "LoRAXS", **LAYERS)
def test_scales_start_at_one_and_updates_at_zero(adapter, base):
    wrapper = build(adapter, base)
    expected = {
        "IA3": {"scale": 1},
        "OFT": {"Q_blocks": 0},
        "VeRA": {"b": 0, "d": 1},
        "LoRAXS": {"R": 0},
    }
    for name, value in expected[adapter.method].items():
        assert np.all(np.asarray(getattr(wrapper, name)) == value)


@adapters("PiSSA", "MiLoRA", **LAYERS)
def test_the_singular_triplets_are_split_between_base_and_factors(adapter, base):
    wrapper, W = build(adapter, base), base.matrix()
    fields, r, n = fields_of(wrapper), wrapper.rank, min(W.shape)
    scale = wrapper.alpha / r
    chosen = slice(0, r) if adapter.method == "PiSSA" else slice(n - r, n)
    part = triplets(W, chosen)
    largest = np.max(np.abs(W))
    assert_close(scale * fields.lora_B @ fields.lora_A, part, 1e-6, scale=largest)
    assert_close(matrix_of(wrapper.base), W - part, 1e-6, scale=largest)
    # Each factor carries the root of the singular values, and the copies are what trains at first.
    S = np.linalg.svd(W, compute_uv=False)[chosen]
    assert_close(fields.lora_B.T @ fields.lora_B, np.diag(S / scale), 1e-5)
    assert_close(fields.lora_A @ fields.lora_A.T, np.diag(S / scale), 1e-5)
    assert np.array_equal(fields.initial_A, fields.lora_A)
    assert np.array_equal(fields.initial_B, fields.lora_B)


@adapters("LoRAXS", **LAYERS)
def test_lora_xs_stands_between_the_principal_directions(adapter, base):
    wrapper, W = build(adapter, base), base.matrix()
    fields, r = fields_of(wrapper), wrapper.rank
    assert_close(fields.lora_A @ fields.lora_A.T, np.eye(r), 1e-5)
    S = np.linalg.svd(W, compute_uv=False)[:r]
    assert_close(fields.lora_B.T @ fields.lora_B, np.diag(S**2), 1e-5)
    assert_close(fields.lora_B @ fields.lora_A, triplets(W, slice(0, r)), 1e-5)
