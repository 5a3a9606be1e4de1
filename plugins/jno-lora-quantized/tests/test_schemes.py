"""Codes and scales: against NumPy, against bitsandbytes, and the published errors."""

import pathlib

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jno_lora_quantized import QuantizedArray, quantize
from jno_lora_quantized._schemes import (
    NORMAL_FLOAT_4,
    Float8,
    Int4,
    Int8,
    NormalFloat4,
    dynamic_tree_8,
)

# By bitsandbytes 0.50.2 on a CPU: quantize_4bit(w, quant_type="nf4", compress_statistics=True).
REFERENCE = np.load(pathlib.Path(__file__).parent / "bitsandbytes.npz")


def weights(rows=80, columns=256, seed=0):
    return np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)


def floats(bits):
    return np.asarray(bits).view(np.float32)


def nearest(values, book):
    return np.argmin(np.abs(values[..., None] - np.asarray(book, np.float32)), axis=-1)


def test_codes_are_those_of_bitsandbytes():
    np.testing.assert_array_equal(np.float32(NORMAL_FLOAT_4), REFERENCE["book4"])
    np.testing.assert_array_equal(dynamic_tree_8(), REFERENCE["book8"])
    array = QuantizedArray.of(jnp.asarray(weights()), NormalFloat4())
    np.testing.assert_array_equal(array.codes, REFERENCE["codes"])
    single = QuantizedArray.of(jnp.asarray(weights()), NormalFloat4(double=False))
    np.testing.assert_array_equal(floats(single.parts[0]), REFERENCE["scales"])


def test_decodes_as_bitsandbytes():
    codes, scale_codes = (jnp.asarray(REFERENCE[name]) for name in ("codes", "scale_codes"))
    second, mean = (jnp.asarray(REFERENCE[name].view(np.uint32)) for name in ("second", "mean"))
    parts, dtype = (scale_codes, second, mean.reshape(())), np.dtype(np.float32)
    array = QuantizedArray(codes, parts, (80, 256), dtype, NormalFloat4())
    np.testing.assert_allclose(array.decoded()[::16], REFERENCE["decoded"], rtol=1e-6, atol=1e-7)


def test_double_quantisation_is_that_of_bitsandbytes():
    codes, largest, mean = QuantizedArray.of(jnp.asarray(weights()), NormalFloat4()).parts
    # The mean is a sum of 320 scales, whose last bit depends on the order.
    np.testing.assert_allclose(floats(mean), REFERENCE["mean"], rtol=2e-7)
    np.testing.assert_allclose(floats(largest), REFERENCE["second"], rtol=1e-6)
    # One scale lies between two codes, up to 1e-5, and bitsandbytes takes the other one.
    is_other = np.asarray(codes) != REFERENCE["scale_codes"]
    assert is_other.sum() == 1
    value = (REFERENCE["scales"] - REFERENCE["mean"])[is_other] / REFERENCE["second"][0]
    neighbours = dynamic_tree_8()[[np.asarray(codes)[is_other], REFERENCE["scale_codes"][is_other]]]
    np.testing.assert_allclose(value, neighbours.mean(), atol=1e-5)


@pytest.mark.parametrize(
    ("make", "rows", "columns", "block"),
    [(NormalFloat4, 3, 8, 4), (NormalFloat4, 5, 13, 8), (NormalFloat4, 4, 7, 64), (Int4, 2, 9, 3)],
)
def test_four_bits_by_numpy(make, rows, columns, block):
    W = weights(rows, columns)
    W[1, :block] = 0
    array = QuantizedArray.of(jnp.asarray(W), make(block, double=False))
    expected = np.zeros_like(W)
    for i in range(rows):
        for start in range(0, columns, block):
            part = W[i, start : start + block]
            scale = np.abs(part).max()
            codes = nearest(part / (scale or 1), make.book)
            expected[i, start : start + block] = np.float32(make.book)[codes] * scale
    np.testing.assert_allclose(array.decoded(), expected, rtol=1e-6)
    assert array.codes.shape == (rows, (columns + 1) // 2)


@pytest.mark.parametrize("scheme", [Int8(), Float8()], ids=["int8", "fp8"])
def test_eight_bits_by_numpy(scheme):
    W = weights(5, 7)
    W[2] = 0
    array = QuantizedArray.of(jnp.asarray(W), scheme)
    scale = np.abs(W).max(axis=1, keepdims=True) / np.float32(scheme.largest)
    scaled = W / np.where(scale > 0, scale, 1)
    if scheme.name == "int8":
        numbers = np.round(scaled)
        codes = numbers.astype(np.int8)
    else:
        numbers = scaled.astype(jnp.float8_e4m3fn)
        codes = numbers.view(np.uint8)
    np.testing.assert_array_equal(array.codes, codes)
    np.testing.assert_allclose(array.decoded(), numbers.astype(np.float32) * scale, rtol=1e-6)


@pytest.mark.parametrize(
    ("scheme", "error", "bytes_each"),
    [
        ("nf4", 0.0919, 0.53),
        ("int4", 0.1077, 0.53),
        ("int8", 0.0079, 1.005),
        ("fp8", 0.0264, 1.005),
    ],
)
def test_published_errors(scheme, error, bytes_each):
    W = jax.random.normal(jax.random.key(5), (512, 1024))
    weight = quantize(eqx.nn.Embedding(weight=W), scheme).weight
    relative = jnp.linalg.norm(weight.decoded() - W) / jnp.linalg.norm(W)
    assert relative == pytest.approx(error, rel=0.01)
    assert weight.nbytes <= bytes_each * W.size
