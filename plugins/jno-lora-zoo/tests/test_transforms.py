"""FourierFT and WaveFT: the transforms, for every size and wavelet."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from zoo_cases import assert_close, perturb

from jno_lora_zoo import FourierFTLinear, WaveFTLinear
from jno_lora_zoo.methods.waveft import daubechies

SIZES = [(5, 6), (6, 5), (8, 4), (7, 7), (1, 4), (4, 1), (2, 2)]


def trained(cls, size, **options):
    """The adapter with all coefficients, its update, and the matrix of coefficients."""
    outputs, inputs = size
    layer = eqx.nn.Linear(inputs, outputs, key=jax.random.key(0))
    wrapper = perturb(cls(layer, 99, 3.0, key=jax.random.key(1), **options))
    digits = np.asarray(wrapper.positions).astype(np.int64)
    C = np.zeros(size)
    C.flat[digits @ 256 ** np.arange(4)] = np.asarray(wrapper.coefficients)
    return wrapper, np.asarray(wrapper.update(jnp.zeros(size))), C


@pytest.mark.parametrize("size", SIZES)
def test_the_update_is_the_real_part_of_the_inverse_fourier_transform(size):
    _, update, C = trained(FourierFTLinear, size)
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


def test_the_second_filter_is_the_one_in_closed_form():
    root = np.sqrt(3)
    closed = np.array([1 + root, 3 + root, 3 - root, 1 - root]) / (4 * np.sqrt(2))
    np.testing.assert_allclose(daubechies(2), closed, atol=1e-14)


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
    _, update, C = trained(WaveFTLinear, size, wavelet=f"db{moments}")
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
    _, by_taps, _ = trained(WaveFTLinear, (5, 6), wavelet=tuple(daubechies(3)))
    _, by_name, _ = trained(WaveFTLinear, (5, 6), wavelet="db3")
    assert_close(by_taps, by_name, 1e-6)
    wrapper, update, C = trained(WaveFTLinear, (5, 6), wavelet="none")
    assert wrapper.low_pass.shape == (0,)
    assert_close(update, 3.0 * C, 1e-6)


@pytest.mark.parametrize("wavelet", ["db0", "db11", "haar", "sym4"])
def test_an_unknown_wavelet_is_refused(wavelet):
    with pytest.raises(ValueError, match=rf"'db1' to 'db10', 'none', .* but is '{wavelet}'"):
        trained(WaveFTLinear, (5, 6), wavelet=wavelet)


def test_an_odd_number_of_taps_is_refused():
    with pytest.raises(ValueError, match="even number of taps, but has 3"):
        trained(WaveFTLinear, (5, 6), wavelet=(0.5, 0.7, 0.2))


def test_the_scale_is_alpha_for_every_rank():
    layer = eqx.nn.Linear(6, 5, key=jax.random.key(0))
    for cls in (FourierFTLinear, WaveFTLinear):
        one, other = (cls(layer, rank, 7.0, key=jax.random.key(0)) for rank in (1, 2))
        assert one.scaling == other.scaling == 7.0
