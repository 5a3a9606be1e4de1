"""Starts that make up for the rounding: against NumPy, and the errors that a table shows."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from jno.lora import (
    DoRALinear,
    LoRALinear,
    Net,
    SelectionError,
    apply_lora,
    load_adapters,
    merge_lora,
    save_adapters,
    unwrap_lora,
)
from jno_lora_quantized import (
    QuantizedArray,
    dequantize,
    load_quantized,
    loftq,
    quantization_errors,
    quantize,
    save_quantized,
)
from jno_lora_quantized._schemes import NormalFloat4

WRAPPERS = ["LoRALinear", "LoRAConv", "LoRAConvTranspose", "LoRAEmbedding"]


def make_model(key):
    k = jr.split(key, 6)
    return {
        "up": eqx.nn.Linear(64, 16, key=k[0]),
        "conv": eqx.nn.Conv1d(4, 6, 3, groups=2, key=k[1]),
        "transposed": eqx.nn.ConvTranspose1d(4, 6, 3, key=k[2]),
        "table": eqx.nn.Embedding(11, 8, key=k[3]),
        "stack": eqx.filter_vmap(lambda key: eqx.nn.Linear(8, 8, key=key))(jr.split(k[4], 2)),
        "norm": eqx.nn.LayerNorm(4),
    }


@pytest.fixture(scope="module")
def model():
    return make_model(jr.key(0))


@pytest.fixture(scope="module")
def adapted(model):
    return apply_lora(model, 2, 4.0, key=jr.key(1), wrapper=WRAPPERS)


@pytest.fixture(scope="module")
def started(adapted):
    return loftq(adapted, iterations=2)


def by_numpy(W, rank, iterations, start):
    def rounded(R):
        return np.asarray(QuantizedArray.of(jnp.asarray(R), NormalFloat4()).decoded())

    def truncated(R):
        U, S, Vt = np.linalg.svd(R.astype(np.float64), full_matrices=False)
        return ((U[:, :rank] * S[:rank]) @ Vt[:rank]).astype(np.float32)

    update = truncated(W) if start == "pissa" else np.zeros_like(W)
    for step in range(iterations):
        Q = rounded(W - update)
        if start == "codes" or step + 1 < iterations:
            update = truncated(W - Q)
    return Q + update


@pytest.mark.slow
@pytest.mark.parametrize(("start", "iterations"), [("codes", 3), ("pissa", 1), ("pissa", 2)])
def test_by_numpy(model, start, iterations):
    adapter = loftq(
        LoRALinear(model["up"], 2, 3.0, key=jr.key(1)), start=start, iterations=iterations
    )
    expected = by_numpy(np.asarray(model["up"].weight), 2, iterations, start)
    # A number between two codes may take either, by the last bit of a product.
    assert np.isclose(adapter.weight, expected, rtol=1e-3, atol=1e-4).mean() > 0.98
    assert type(adapter) is LoRALinear and (adapter.rank, adapter.alpha) == (2, 3.0)


@pytest.mark.slow
def test_every_kind_of_layer(model, adapted, started):
    errors = quantization_errors(model, started)
    plain = {row.path: row for row in quantization_errors(model, quantize(model)).rows}
    assert plain.keys() == {row.path for row in errors.rows} == model.keys() - {"norm"}
    for row in errors.rows:
        assert row.relative < plain[row.path].relative and plain[row.path].adapter is None
        old = np.asarray(model[row.path].weight)
        change = np.asarray(started[row.path].weight) - old
        assert row.relative == pytest.approx(np.linalg.norm(change) / np.linalg.norm(old), rel=1e-4)
        assert row.largest == pytest.approx(np.abs(change).max(), rel=1e-4)
    assert started["norm"] == model["norm"]
    assert jax.tree.structure(dequantize(started)) == jax.tree.structure(adapted)
    template = loftq(eqx.filter_eval_shape(lambda m: m, adapted), iterations=2)
    assert jax.tree.structure(template) == jax.tree.structure(started)
    x = jr.normal(jr.key(2), (64,))
    np.testing.assert_allclose(
        started["up"](x), merge_lora(dequantize(started))["up"](x), rtol=1e-4
    )
    assert "All together: relative error" in str(errors) and "LoRAEmbedding" in str(errors)


@pytest.mark.slow
def test_saved_and_loaded(started, tmp_path):
    save_adapters(started, tmp_path / "adapters.safetensors")
    save_quantized(unwrap_lora(started), tmp_path / "base.safetensors")
    template = eqx.filter_eval_shape(make_model, jr.key(0))
    base = load_quantized(template, tmp_path / "base.safetensors")
    assert eqx.tree_equal(load_adapters(base, tmp_path / "adapters.safetensors"), started)


@pytest.mark.slow
def test_layers_without_adapters_and_other_methods(model):
    specs = [{"target": "a", "wrapper": "lora"}, {"target": "b", "wrapper": "dora"}]
    some = apply_lora(dict.fromkeys("abc", model["up"]), 2, key=jr.key(1), specs=specs)
    coded = loftq(some, iterations=1)
    assert jnp.any(coded["a"].lora_B != 0)
    assert eqx.tree_equal(coded["b"], quantize(some["b"]))
    assert isinstance(coded["c"].weight, QuantizedArray)
    # Learned updates and other scales count.
    adapter = LoRALinear(model["up"], 2, -4.0, key=jr.key(1), adapter_dtype=jnp.bfloat16)
    moved = eqx.tree_at(lambda m: m.lora_B, adapter, adapter.lora_B + 0.1)
    coded = loftq(moved, "int8", iterations=1)
    assert coded.lora_A.dtype == jnp.bfloat16
    np.testing.assert_allclose(coded.weight, moved.weight, atol=0.01)


def of(model, cls, alpha, **options):
    return cls(model["up"], 2, alpha, key=jr.key(0), **options)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, a: loftq(a, iterations=0), "`iterations` must be a positive integer"),
        (lambda m, a: loftq(a, start="zero"), '`start` must be "codes" or "pissa"'),
        (lambda m, a: loftq(m), "apply_lora comes first"),
        (lambda m, a: loftq(Net(m)), "net.module"),
        (lambda m, a: loftq(a, target="norm"), r"up \(LoRALinear\): the target does not match"),
        (lambda m, a: loftq(of(m, DoRALinear, 1.0)), "its update is not a scale times B A"),
        (lambda m, a: loftq(of(m, LoRALinear, 1.0, multiplier=2.0)), "a multiplier"),
        (lambda m, a: loftq(of(m, LoRALinear, 0.0)), "has the scale 0"),
        (lambda m, a: quantization_errors(m, m), "Give the original model first"),
    ],
)
def test_errors(model, adapted, unchecked, call, message):
    with pytest.raises(SelectionError, match=message):
        call(model, adapted)
