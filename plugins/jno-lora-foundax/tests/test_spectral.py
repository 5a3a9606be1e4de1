"""Spectral weights: one complex low-rank update for each mode.

`test_spectral_oracles.py` has the law of every layer, in double precision.
"""

import sys
import types

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from foundax.architectures import fno
from foundax_cases import (
    SPECTRAL,
    check_everything,
    filled,
    perturbed,
    run,
    same_form,
)
from foundax_cases.maps import spectral
from zoo_cases import assert_close, cast_floats

from jno_lora_foundax import CPSpectral, GainSpectral, LoRASpectral, ModeWeights, rsLoRASpectral
from jno_lora_foundax._mode_weights import mode_weights_of

CORNERS = {
    "SpectralConv1d": ["weight"],
    "SpectralConv2d": ["weight_1", "weight_2"],
    "SpectralConv3d": ["weight_1", "weight_2", "weight_3", "weight_4"],
}


def complex_weight(layer, corner):
    """The corner's matrices as NumPy's complex numbers, `(modes, out, in)`."""
    real, imag = (np.asarray(getattr(layer, f"{corner}_{part}")) for part in ("real", "imag"))
    weight = (real + 1j * imag).reshape(*real.shape[:2], -1)
    return weight.transpose(2, 1, 0)


def as_complex(array):
    """An adapter's array as complex matrices, `(modes, rows, columns)`."""
    real, imag = np.asarray(array)
    return (real + 1j * imag).reshape(-1, *array.shape[-2:])


@pytest.mark.parametrize(
    ("name", "cls", "scale"),
    [
        *((name, LoRASpectral, 6 / 2) for name in CORNERS),
        ("SpectralConv1d", rsLoRASpectral, 18**0.5),
    ],
)
def test_each_mode_of_each_corner_gets_a_complex_product(name, cls, scale, getkey):
    base = filled(SPECTRAL[name].make, getkey())
    wrapper = perturbed(cls(base, 2, 6.0, key=getkey()))
    assert list(wrapper.lora_A) == CORNERS[name]
    merged = wrapper.merge()
    for corner in CORNERS[name]:
        A, B = as_complex(wrapper.lora_A[corner]), as_complex(wrapper.lora_B[corner])
        update = complex_weight(merged, corner) - complex_weight(base, corner)
        for k in range(len(update)):
            np.testing.assert_allclose(update[k], scale * B[k] @ A[k], rtol=1e-4, atol=1e-5)
            singular = np.linalg.svd(update[k], compute_uv=False)
            assert singular[1] > 1e-3 and np.all(singular[2:] < 1e-5)


@pytest.mark.parametrize("name", SPECTRAL)
def test_every_layer(name, getkey):
    layer = SPECTRAL[name]
    result = check_everything(
        layer.make, layer.data, lambda base, key: LoRASpectral(base, 3, 3.0, key=key), getkey()
    )
    gradient = jax.tree.leaves(result.gradient)
    assert all(np.any(g != 0) for g in gradient)
    assert sum(g.size for g in gradient) == 3 * (layer.outputs + layer.inputs) * layer.modes


def test_a_change_at_one_mode_stays_there(getkey):
    base = filled(SPECTRAL["SpectralConv2d"].make, getkey())
    wrapper = LoRASpectral(base, 2, 2.0, key=getkey())
    B = wrapper.lora_B["weight_2"].at[0, 1, 0].set(1.0)
    changed = eqx.tree_at(lambda w: w.lora_B["weight_2"], wrapper, B).merge()
    np.testing.assert_array_equal(changed.weight_1_real, base.weight_1_real)
    moved = np.any(np.asarray(changed.weight_2_real != base.weight_2_real), axis=(0, 1))
    assert np.argwhere(moved).tolist() == [[1, 0]]


def test_initial_factors_have_the_documented_variance(getkey):
    base = fno.SpectralConv1d(32, 6, 40, key=getkey())
    A = LoRASpectral(base, 4, 1.0, key=getkey()).lora_A["weight"]
    assert A.shape == (2, 40, 4, 32) and A.dtype == jnp.float32
    size = np.mean(np.sum(np.asarray(A) ** 2, axis=0))
    np.testing.assert_allclose(size, 1 / 32, rtol=0.05)
    correlation = np.mean(np.asarray(A[0] * A[1])) * 64
    assert abs(correlation) < 0.05


def test_corners_and_parts_do_not_repeat_random_numbers(getkey):
    wrapper = LoRASpectral(filled(SPECTRAL["SpectralConv3d"].make, getkey()), 2, 1.0, key=getkey())
    numbers = np.concatenate([np.ravel(a) for a in wrapper.lora_A.values()])
    assert len(np.unique(numbers)) == len(numbers)


def test_the_rank_is_at_most_the_smaller_side(getkey):
    base = filled(SPECTRAL["SpectralConv1d"].make, getkey())
    wrapper = LoRASpectral(base, 50, 8.0, key=getkey())
    assert wrapper.rank == 4 and wrapper.scale_for(4) == 2.0
    assert wrapper.lora_B["weight"].shape == (2, 3, 5, 4)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_weights_keep_their_dtype_and_run(dtype, getkey):
    base = jax.tree.map(
        lambda x: x.astype(dtype), filled(SPECTRAL["SpectralConv1d"].make, getkey())
    )
    wrapper = LoRASpectral(base, 2, 2.0, key=getkey())
    assert {leaf.dtype for leaf in jax.tree.leaves(wrapper.lora_A)} == {jnp.dtype("float32")}
    merged = perturbed(wrapper).merge()
    assert same_form(merged, base) and merged.weight_real.dtype == dtype
    x = SPECTRAL["SpectralConv1d"].data(getkey())[0]
    assert run(wrapper, x).dtype == run(base, x).dtype == jnp.float32
    small = LoRASpectral(base, 2, 2.0, key=getkey(), adapter_dtype=dtype)
    assert {leaf.dtype for leaf in jax.tree.leaves(small.lora_B)} == {jnp.dtype(dtype)}
    with pytest.raises(ValueError, match="`adapter_dtype` must be a floating dtype"):
        LoRASpectral(base, 2, 2.0, key=getkey(), adapter_dtype=jnp.int8)


@pytest.mark.parametrize("points", [2, 5, 13])  # of 2 points there are fewer modes than weights
def test_a_layer_runs_at_another_resolution(points, getkey):
    base = filled(SPECTRAL["SpectralConv1d"].make, getkey())
    x = np.random.default_rng(7).normal(size=(points, 4))
    with jax.enable_x64(True):
        wrapper = perturbed(LoRASpectral(cast_floats(base, jnp.float64), 2, 6.0, key=getkey()))
        outputs = [run(layer, jnp.asarray(x)) for layer in (wrapper, wrapper.merge())]
    A, B = as_complex(wrapper.lora_A["weight"]), as_complex(wrapper.lora_B["weight"])
    matrices = complex_weight(base, "weight") + 3.0 * B @ A
    for y in outputs:
        assert_close(y, spectral(base, [matrices], x), 1e-12)


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


@pytest.mark.parametrize("dims", [1, 2, 3])
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


def test_bands_that_mean_nothing_are_refused(getkey):
    base = filled(SPECTRAL["SpectralConv1d"].make, getkey())
    for bands in ({}, {0: 1}, {2: 0}, {2: 1.5}, {True: 1}, [2, 1], "4:8"):
        with pytest.raises(ValueError, match="`bands` must give ranks by the frequency"):
            LoRASpectral(base, 2, 2.0, key=getkey(), bands=bands)
    with pytest.raises(ValueError, match="a band of rank 3, but `rank` is 2"):
        LoRASpectral(base, 2, 2.0, key=getkey(), bands={2: 3, 4: 1})
    blocks = filled(SPECTRAL["AFNO2D"].make, getkey())
    with pytest.raises(ValueError, match="the modes of 'w1' of a AFNO2D have"):
        LoRASpectral(blocks, 2, 2.0, key=getkey(), bands={2: 1})


class OtherSpectral(eqx.Module):
    """Somebody's own layer, whose real arrays hold both parts at the end."""

    kernel: jax.Array  # (modes, out, in, 2)

    def __call__(self, x):
        weight = self.kernel[..., 0] + 1j * self.kernel[..., 1]
        y = jnp.einsum("koi,ki->ko", weight, jnp.fft.rfft(x, axis=0)[: len(weight)])
        return jnp.fft.irfft(y, n=len(x), axis=0)


class LoRAOtherSpectral(LoRASpectral):
    auto = False

    @classmethod
    def mode_weights(cls, leaf):
        is_other = isinstance(leaf, OtherSpectral)
        return {"kernel": ModeWeights(("kernel",), "koip")} if is_other else None


def test_a_subclass_declares_another_library(getkey):
    base = OtherSpectral(jax.random.normal(getkey(), (3, 4, 5, 2)))
    assert mode_weights_of(base) is None and not LoRASpectral.applies_to(base)
    assert LoRAOtherSpectral.applies_to(base)
    wrapper = perturbed(LoRAOtherSpectral(base, 2, 2.0, key=getkey()))
    A, B = as_complex(wrapper.lora_A["kernel"]), as_complex(wrapper.lora_B["kernel"])
    update = np.asarray(wrapper.merge().kernel - base.kernel)
    np.testing.assert_allclose(update[..., 0] + 1j * update[..., 1], B @ A, rtol=1e-4, atol=1e-5)
    assert run(wrapper, jnp.ones((8, 5))).shape == (8, 4)
    with pytest.raises(TypeError, match="declared spectral weights"):
        LoRAOtherSpectral(filled(SPECTRAL["SpectralConv1d"].make, getkey()), 2, 2.0, key=getkey())


class SpectralConv(eqx.Module):
    """As pdequinox's: channels first, the corners of the spectrum on the first axis."""

    num_spatial_dims: int
    weights_real: jax.Array  # (corners, out, in, *modes), as the call reads them
    weights_imag: jax.Array

    def __call__(self, x):
        weights = self.weights_real + 1j * self.weights_imag
        modes = weights.shape[3:]
        x_hat = jnp.fft.rfftn(x, axes=tuple(range(1, x.ndim)))
        y_hat = jnp.zeros((weights.shape[1], *x_hat.shape[1:]), x_hat.dtype)
        for corner, W in enumerate(weights):
            at = (slice(None), slice(0, modes[0]) if corner == 0 else slice(-modes[0], None))
            at = (*at[: x.ndim - 1], slice(0, modes[-1]))
            y_hat = y_hat.at[at].set(jnp.einsum("i...,oi...->o...", x_hat[at], W))
        return jnp.fft.irfftn(y_hat, s=x.shape[1:], axes=tuple(range(1, x.ndim)))


@pytest.fixture
def pdequinox(monkeypatch):
    monkeypatch.setitem(
        sys.modules, "pdequinox.conv", types.SimpleNamespace(SpectralConv=SpectralConv)
    )


@pytest.mark.parametrize("modes", [(3,), (3, 2)])
def test_layers_with_stacked_corners(modes, pdequinox, getkey):
    shape = (2 ** (len(modes) - 1), 5, 4, *modes)
    real, imag = jax.random.normal(getkey(), (2, *shape))
    base = SpectralConv(len(modes), real, imag)
    assert LoRASpectral.applies_to(base) and GainSpectral.applies_to(base)
    wrapper = perturbed(LoRASpectral(base, 2, 2.0, key=getkey()))
    A, B = wrapper.lora_A["weights"], wrapper.lora_B["weights"]
    assert A.shape == (2, len(real), *modes, 2, 4) and B.shape == (2, len(real), *modes, 5, 2)
    merged = wrapper.merge()
    update = jnp.stack([merged.weights_real - real, merged.weights_imag - imag])
    update = as_complex(jnp.moveaxis(update, (2, 3), (-2, -1)))
    np.testing.assert_allclose(update, as_complex(B) @ as_complex(A), rtol=1e-4, atol=1e-5)
    x = jax.random.normal(getkey(), (4, 7, 6)[: len(modes) + 1])
    np.testing.assert_allclose(run(wrapper, x), run(merged, x), rtol=1e-5, atol=1e-5)
    stack = jax.tree.map(lambda a: jnp.stack([a, a]), base)
    assert LoRASpectral.stack_ndim(SpectralConv(len(modes), *jax.tree.leaves(stack)[-2:])) == 1


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


def test_gains_are_per_mode_or_per_output(getkey):
    base = filled(SPECTRAL["SpectralConv1d"].make, getkey())
    with pytest.raises(ValueError, match='`per` must be "mode" or "output"'):
        GainSpectral(base, key=getkey(), per="input")


def test_all_modes_share_the_directions_of_an_update(getkey):
    base = filled(SPECTRAL["SpectralConv2d"].make, getkey())
    wrapper = perturbed(CPSpectral(base, 1, 6.0, key=getkey()))
    update = jax.tree.map(lambda a, b: np.asarray(a - b), wrapper.merge(), base)
    for corner in ("weight_1", "weight_2"):
        of_modes = complex_weight(update, corner)
        together = np.concatenate(list(of_modes))  # one direction among the inputs
        assert np.linalg.matrix_rank(together, tol=1e-4) == 1
        assert np.linalg.matrix_rank(of_modes.reshape(len(of_modes), -1), tol=1e-4) == 1
        largest = np.max(np.abs(of_modes), axis=(1, 2))
        assert np.max(largest) > 1.1 * np.min(largest)  # weighted by mode
