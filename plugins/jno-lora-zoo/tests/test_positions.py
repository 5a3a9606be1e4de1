"""Trained entries and coefficients: where they are, how many, and the transforms of them."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from zoo_cases import Adapter, assert_close, build, equal_leaves, perturb

from jno_lora_zoo import FourierFTLinear, SuperTuningLinear, WaveFTLinear
from jno_lora_zoo._positions import count_of, digits_of, drawn_positions, number_of
from jno_lora_zoo.methods.waveft import daubechies

KEY = jax.random.key(0)


def linear(inputs=6, outputs=5):
    return eqx.nn.Linear(inputs, outputs, key=KEY)


def flat(wrapper):
    """The positions as integers, by NumPy."""
    return np.asarray(wrapper.positions).astype(np.int64) @ 256 ** np.arange(4)


@pytest.mark.parametrize("dtype", [jnp.uint8, jnp.float32, jnp.bfloat16, jnp.float16])
def test_numbers_of_32_bits_survive_as_digits_of_any_dtype(dtype):
    numbers = [0, 1, 255, 256, 2049, 65535, 16777217, 2**31 + 1, 2**32 - 1]
    digits = digits_of(jnp.asarray(np.array(numbers, np.uint32)))
    assert digits.dtype == jnp.uint8 and digits.shape == (9, 4)
    np.testing.assert_array_equal(number_of(digits.astype(dtype)), np.array(numbers, np.uint32))


@pytest.mark.parametrize("n", [1, 22, 30])
def test_drawn_positions_differ_and_are_equally_likely(n):
    draws = 4000
    keys = jax.random.split(KEY, draws)
    drawn = np.asarray(number_of(jax.vmap(lambda key: drawn_positions(key, n, 30))(keys)))
    assert drawn.shape == (draws, n)
    assert all(len(set(row)) == n for row in drawn)
    frequencies = np.bincount(drawn.ravel(), minlength=30) / draws
    assert len(frequencies) == 30
    deviation = np.sqrt(n / 30 * (1 - n / 30) / draws)
    assert np.max(np.abs(frequencies - n / 30)) <= 4.5 * deviation


def test_positions_reach_the_ends_of_a_large_matrix():
    size = 2**31 + 2**30 + 7
    places = np.asarray(number_of(drawn_positions(KEY, 5000, size))).astype(np.int64)
    assert len(set(places)) == 5000
    (one,) = np.asarray(number_of(drawn_positions(KEY, 1, size)))
    assert one < size
    assert places.min() < 0.001 * size and 0.999 * size < places.max() < size
    with pytest.raises(ValueError, match=r"has 4294967296 entries, but positions end at 2\^32"):
        count_of((2**16, 2**16), 4, 10, "count")


@pytest.mark.parametrize("method", ["SHiRA", "SuperTuning", "FourierFT", "WaveFT"])
def test_positions_survive_a_cast_of_every_leaf(method):
    dtype = jnp.bfloat16
    wrapper = build(Adapter(method, "Linear"), linear(70, 100), rank=2)
    cast = jax.tree.map(lambda x: x.astype(dtype), wrapper)
    assert cast.positions.dtype == dtype
    back = jax.tree.map(lambda x, y: x.astype(y.dtype), cast, wrapper)
    assert equal_leaves(back.positions, wrapper.positions)
    moved, x = perturb(cast), jnp.linspace(-1, 1, 70).astype(dtype)
    assert_close(moved(x), moved.merge()(x), 8 * float(jnp.finfo(dtype).eps))
    assert np.max(np.abs(np.asarray(moved(x) - cast(x)).astype(np.float32))) > 0


@pytest.mark.parametrize(
    ("cls", "options", "name"),
    [
        (SuperTuningLinear, {"count": 9}, "values"),
        (SuperTuningLinear, {"sparsity": 0.7, "largest": False}, "values"),
        (FourierFTLinear, {"n_frequency": 9}, "coefficients"),
        (WaveFTLinear, {"n_frequency": 9, "wavelet": "db3"}, "coefficients"),
        (WaveFTLinear, {"n_frequency": 9, "wavelet": "none"}, "coefficients"),
    ],
)
def test_the_number_is_an_option_that_the_state_implies(cls, options, name):
    wrapper = cls(linear(), 2, 3.0, key=KEY, **options)
    assert getattr(wrapper, name).shape == (9,)
    again = cls(linear(), 2, 3.0, key=KEY, **cls.options_of(wrapper.state()))
    shapes = [{k: v.shape for k, v in w.state().items()} for w in (wrapper, again)]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize(
    ("cls", "options", "message"),
    [
        (SuperTuningLinear, {"count": 0}, r"`count` .* from 1 to 30, .* \(5, 6\), but is 0"),
        (SuperTuningLinear, {"count": 31}, r"`count` .* from 1 to 30, .* \(5, 6\), but is 31"),
        (FourierFTLinear, {"n_frequency": 2.0}, "`n_frequency` .* from 1 to 30, .* but is 2.0"),
        (SuperTuningLinear, {"sparsity": 0.5, "count": 2}, "say the same: give one of them"),
        (SuperTuningLinear, {"sparsity": 0.99}, r"sparsity\) in out` .* from 1 to 30, .* \(5, 6\)"),
        (SuperTuningLinear, {"sparsity": -0.1}, r"sparsity\) in out` .* from 1 to 30, .* \(5, 6\)"),
    ],
)
def test_a_number_that_does_not_fit_is_refused(cls, options, message):
    with pytest.raises(ValueError, match=message):
        cls(linear(), 2, 3.0, key=KEY, **options)


@pytest.mark.parametrize(("sparsity", "n"), [(0.0, 30), (0.5, 15), (0.9, 2), (0.99 - 0.03, 1)])
@pytest.mark.parametrize("largest", [True, False])
def test_super_tuning_takes_the_entries_by_size(sparsity, n, largest):
    options = {"sparsity": sparsity, "largest": largest}
    wrapper = SuperTuningLinear(linear(), 2, 1.0, key=KEY, **options)
    order = np.argsort(np.abs(np.asarray(linear().weight)).ravel())
    expected = order[len(order) - n :] if largest else order[:n]
    assert list(flat(wrapper)) == sorted(expected)


SIZES = [(5, 6), (8, 4), (1, 4), (4, 1)]


def transformed(cls, size, **options):
    """The adapter with all coefficients, its update, and the matrix of coefficients."""
    outputs, inputs = size
    wrapper = perturb(cls(linear(inputs, outputs), 99, 3.0, key=KEY, **options))
    C = np.zeros(size)
    C.flat[flat(wrapper)] = np.asarray(wrapper.coefficients)
    return wrapper, np.asarray(wrapper.update(jnp.zeros(size))), C


@pytest.mark.parametrize("size", SIZES)
def test_the_update_is_the_real_part_of_the_inverse_fourier_transform(size):
    _, update, C = transformed(FourierFTLinear, size)
    assert_close(update, 3.0 * np.fft.ifft2(C).real, 1e-5)


@pytest.mark.parametrize("moments", range(1, 11))
def test_the_filters_of_daubechies(moments):
    low = daubechies(moments)
    assert low.shape == (2 * moments,)
    for shift in range(moments):  # orthonormal to itself, moved by two places
        product = np.sum(low[2 * shift :] * low[: len(low) - 2 * shift])
        assert abs(product - (shift == 0)) < 1e-9
    signs = (-1.0) ** np.arange(2 * moments)
    for power in range(moments):  # the details of polynomials vanish
        terms = signs * low * (np.arange(2 * moments) / (2 * moments)) ** power
        assert abs(np.sum(terms)) < 1e-7
    # The zeros lie inside the unit circle, and so the energy comes first.
    assert np.sum(low[:moments] ** 2) > 0.5 or moments == 1
    if moments == 2:
        root = np.sqrt(3)
        closed = np.array([1 + root, 3 + root, 3 - root, 1 - root]) / (4 * np.sqrt(2))
        np.testing.assert_allclose(low, closed, atol=1e-14)


def upsampled(c, taps):
    """Along the first axis: coefficients spread by two, convolved, the ends cut off."""
    full = np.zeros((2 * len(c) - 2 + len(taps), c.shape[1]))
    for i, row in enumerate(c):
        for k, tap in enumerate(taps):
            full[2 * i + k] += tap * row
    cut = len(taps) - 2
    return full[cut : len(full) - cut]


# Every size, and every filter on an odd and an even one.
@pytest.mark.parametrize(
    ("size", "moments"),
    [*((size, 2) for size in SIZES), *((size, n) for size in SIZES[:2] for n in (1, 5))],
)
def test_the_update_is_the_inverse_wavelet_transform(size, moments):
    _, update, C = transformed(WaveFTLinear, size, wavelet=f"db{moments}")
    low = daubechies(moments)
    high = low[::-1] * (-1.0) ** np.arange(len(low))
    padded = [n + len(low) - 2 + n % 2 for n in size]
    before = [(p - n) // 2 for p, n in zip(padded, size, strict=True)]
    Q = np.zeros(padded)
    Q[before[0] : before[0] + size[0], before[1] : before[1] + size[1]] = C
    h, w = padded[0] // 2, padded[1] // 2
    expected = 0
    for quarter, rows, columns in [
        (Q[:h, :w], low, low),
        (Q[:h, w:], high, low),
        (Q[h:, :w], low, high),
        (Q[h:, w:], high, high),
    ]:
        expected = expected + upsampled(upsampled(quarter, rows).T, columns).T
    assert_close(update, 3.0 * expected[: size[0], : size[1]], 1e-5)


def test_taps_of_another_filter_and_no_transform():
    _, by_taps, _ = transformed(WaveFTLinear, (5, 6), wavelet=tuple(daubechies(3)))
    _, by_name, _ = transformed(WaveFTLinear, (5, 6), wavelet="db3")
    assert_close(by_taps, by_name, 1e-6)
    wrapper, update, C = transformed(WaveFTLinear, (5, 6), wavelet="none")
    assert wrapper.low_pass.shape == (0,)
    assert_close(update, 3.0 * C, 1e-6)


@pytest.mark.parametrize(
    ("wavelet", "message"),
    [
        ("haar", "'db1' to 'db10', 'none', .* but is 'haar'"),
        ((0.5, 0.7, 0.2), "even number of taps, but has 3"),
    ],
)
def test_an_unknown_wavelet_is_refused(wavelet, message):
    with pytest.raises(ValueError, match=message):
        transformed(WaveFTLinear, (5, 6), wavelet=wavelet)
