"""Spectral weights: starts, ranks, bands, dtypes, resolutions, and the layers of pdequinox."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from foundax.architectures import fno
from foundax_cases import SPECTRAL, filled, perturbed, run
from zoo_cases import assert_close

from jno_lora_foundax import GainSpectral, LoRASpectral


def complex_weight(layer, corner):
    """The corner's matrices as NumPy's complex numbers, `(modes, out, in)`."""
    real, imag = (np.asarray(getattr(layer, f"{corner}_{part}")) for part in ("real", "imag"))
    weight = (real + 1j * imag).reshape(*real.shape[:2], -1)
    return weight.transpose(2, 1, 0)


def as_complex(array):
    """An adapter's array as complex matrices, `(modes, rows, columns)`."""
    real, imag = np.asarray(array)
    return (real + 1j * imag).reshape(-1, *array.shape[-2:])


def test_random_factors_have_the_documented_variance_and_repeat_no_number(getkey):
    base = fno.SpectralConv1d(32, 6, 40, key=getkey())
    wrapper = LoRASpectral(base, 50, 8.0, key=getkey())
    assert wrapper.rank == 6 and wrapper.scale_of(4, 8.0) == 2.0
    A = wrapper.lora_A["weight"]
    assert A.shape == (2, 40, 6, 32) and A.dtype == jnp.float32
    np.testing.assert_allclose(np.mean(np.sum(np.asarray(A) ** 2, axis=0)), 1 / 32, rtol=0.05)
    assert abs(np.mean(np.asarray(A[0] * A[1])) * 64) < 0.05
    corners = LoRASpectral(filled(SPECTRAL["SpectralConv3d"].make, getkey()), 2, 1.0, key=getkey())
    numbers = np.concatenate([np.ravel(a) for a in corners.lora_A.values()])
    assert len(np.unique(numbers)) == len(numbers)


def test_a_merged_layer_and_an_adapted_layer_run_at_another_resolution(getkey):
    base = filled(SPECTRAL["SpectralConv1d"].make, getkey())
    wrapper = perturbed(LoRASpectral(base, 2, 6.0, key=getkey()))
    for points in (2, 13):  # of 2 points there are fewer modes than weights
        x = jax.random.normal(getkey(), (points, 4))
        assert_close(run(wrapper, x), run(wrapper.merge(), x), 1e-5)


def test_each_band_has_its_rank(getkey):
    base = filled(SPECTRAL["SpectralConv2d"].make, getkey())  # 3 x 2 modes
    bands = {1: 3, 2: 1}
    asked = {np.int64(1): np.int64(3), 2: 1}
    wrapper = perturbed(LoRASpectral(base, 9, 6.0, key=getkey(), bands=asked))
    assert wrapper.rank == 4 and LoRASpectral.options_of(wrapper.state()) == {"bands": bands}
    # |k_x| is 0, 1, 2 in the first corner, and 3, 2, 1 in the second.
    assert {n: A.shape[1:3] for n, A in wrapper.lora_A.items()} == {
        "weight_1_below_1": (1, 3),
        "weight_1_below_2": (3, 1),
        "weight_2_below_2": (2, 1),
    }
    update = jax.tree.map(lambda a, b: np.asarray(a - b), wrapper.merge(), base)
    for corner, heights in (("weight_1", [0, 1, 2]), ("weight_2", [3, 2, 1])):
        ranks = [
            np.linalg.matrix_rank(matrix, tol=1e-4) for matrix in complex_weight(update, corner)
        ]
        expected = [{0: 3, 1: 1}.get(max(x, y), 0) for x in heights for y in (0, 1)]
        assert ranks == expected
    A, B = (as_complex(one["weight_2_below_2"]) for one in (wrapper.lora_A, wrapper.lora_B))
    np.testing.assert_allclose(
        complex_weight(update, "weight_2")[4:], 6.0 * B @ A, rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("dims", [1, 3])
def test_the_frequencies_are_those_of_waves(dims, getkey):
    cls = (fno.SpectralConv1d, fno.SpectralConv2d, fno.SpectralConv3d)[dims - 1]
    base = filled(lambda key: cls(2, 2, *[3] * dims, linear_conv=False, key=key), getkey())
    wrapper = perturbed(LoRASpectral(base, 2, 2.0, key=getkey(), bands={2: 1}))
    k = np.array(list(np.ndindex(*[5] * dims)))
    k[:, :-1] -= 2  # from -2 to 2, and from 0 to 4
    points = np.stack(np.meshgrid(*[np.arange(9)] * dims, indexing="ij"), axis=-1)
    waves = np.cos(2 * np.pi / 9 * np.einsum("...d,kd->k...", points, k))[..., None]
    x = jnp.asarray(waves * np.ones(2), jnp.float32)
    changed = run(jax.vmap(wrapper), x) - run(jax.vmap(base), x)
    size = np.max(np.abs(np.asarray(changed)), axis=tuple(range(1, dims + 2)))
    heights = np.max(np.abs(k), axis=1)
    assert np.all(size[heights < 2] > 1e-2) and np.all(size[heights >= 2] < 1e-4)


def test_options_that_mean_nothing_are_refused(getkey):
    base = filled(SPECTRAL["SpectralConv1d"].make, getkey())
    for bands in ({}, {0: 1}, {2: 0}, {2: 1.5}, {2: 3, 4: 1}, [2, 1], "4:8"):
        with pytest.raises(ValueError, match="`bands` must give ranks by the frequency"):
            LoRASpectral(base, 2, 2.0, key=getkey(), bands=bands)
    blocks = filled(SPECTRAL["AFNO2D"].make, getkey())
    with pytest.raises(ValueError, match="the modes of 'w1' of a AFNO2D are unknown"):
        LoRASpectral(blocks, 2, 2.0, key=getkey(), bands={2: 1})
    with pytest.raises(ValueError, match='`per` must be "mode" or "output"'):
        GainSpectral(base, key=getkey(), per="input")


@pytest.mark.parametrize(("per", "outputs"), [("mode", 1), ("output", 5)])
def test_a_gain_multiplies_one_mode(per, outputs, getkey):
    base = filled(SPECTRAL["SpectralConv1d"].make, getkey())
    wrapper = GainSpectral(base, key=getkey(), per=per)
    assert wrapper.gain["weight"].shape == (2, 3, outputs)
    assert GainSpectral.options_of(wrapper.state()) == {"per": per}
    gain = wrapper.gain["weight"].at[0, 1, -1].set(-1.0).at[1, 1, -1].set(2.0)
    merged = eqx.tree_at(lambda w: w.gain["weight"], wrapper, gain).merge()
    expected = complex_weight(base, "weight")
    expected[1, slice(None) if per == "mode" else 4] *= 2j
    np.testing.assert_allclose(complex_weight(merged, "weight"), expected, rtol=1e-6)


class SpectralConv(eqx.Module):
    """As pdequinox's: channels first, the corners of the spectrum on the first axis."""

    num_spatial_dims: int
    weights_real: jax.Array  # (corners, out, in, *modes), as the call reads them
    weights_imag: jax.Array

    def __call__(self, x):
        weights = self.weights_real + 1j * self.weights_imag
        rows, columns = weights.shape[3:]
        x_hat = jnp.fft.rfftn(x, axes=(1, 2))
        y_hat = jnp.zeros((weights.shape[1], *x_hat.shape[1:]), x_hat.dtype)
        for W, part in zip(weights, (slice(0, rows), slice(-rows, None)), strict=True):
            at = (slice(None), part, slice(0, columns))
            y_hat = y_hat.at[at].set(jnp.einsum("i...,oi...->o...", x_hat[at], W))
        return jnp.fft.irfftn(y_hat, s=x.shape[1:], axes=(1, 2))


def test_layers_with_stacked_corners(monkeypatch, getkey):
    monkeypatch.setattr(SpectralConv, "__module__", "pdequinox.conv")
    real, imag = jax.random.normal(getkey(), (2, 2, 5, 4, 3, 2))
    base = SpectralConv(2, real, imag)
    assert LoRASpectral.applies_to(base) and GainSpectral.applies_to(base)
    wrapper = perturbed(LoRASpectral(base, 2, 2.0, key=getkey()))
    A, B = wrapper.lora_A["weights"], wrapper.lora_B["weights"]
    assert A.shape == (2, 2, 3, 2, 2, 4) and B.shape == (2, 2, 3, 2, 5, 2)
    merged = wrapper.merge()
    update = jnp.stack([merged.weights_real - real, merged.weights_imag - imag])
    update = as_complex(jnp.moveaxis(update, (2, 3), (-2, -1)))
    np.testing.assert_allclose(update, as_complex(B) @ as_complex(A), rtol=1e-4, atol=1e-5)
    x = jax.random.normal(getkey(), (4, 7, 6))
    np.testing.assert_allclose(run(wrapper, x), run(merged, x), rtol=1e-5, atol=1e-5)
    assert LoRASpectral.stack_ndim(SpectralConv(2, *(jnp.stack([a, a]) for a in (real, imag)))) == 1
    # Bands: `|k|` is 0, 1, 2 in the rows of the first corner, and 3, 2, 1 in those of the second.
    banded = LoRASpectral(base, 1, 1.0, key=getkey(), bands={2: 1}).lora_A["weights_below_2"]
    assert banded.shape[1] == 6
