"""Spectral weights of the Fourier neural operators of pdequinox, on the package itself."""

import os

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from jno.lora import lora_trainable_filter
from jno_lora_foundax import GainSpectral, LoRASpectral

pytestmark = pytest.mark.skipif(
    not os.environ.get("JNO_LORA_TEST_MODELS"), reason="run by `make test-models`"
)


def moved(adapter):
    def move(trains, leaf):
        return leaf + 0.3 * jr.normal(jr.key(leaf.size), leaf.shape) if trains else leaf

    return jax.tree.map(move, lora_trainable_filter(adapter), adapter)


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_each_mode_gets_its_own_update(dims):
    from pdequinox.conv import SpectralConv

    base = SpectralConv(dims, 3, 3, 2, key=jr.key(0))
    x = jr.normal(jr.key(1), (3, *(6, 5, 7)[:dims]))
    lora = moved(LoRASpectral(base, 2, 2.0, key=jr.key(2)))
    gain = moved(GainSpectral(base, key=jr.key(2), per="output"))
    A, B, g = (
        a[0] + 1j * a[1]
        for a in (lora.lora_A["weights"], lora.lora_B["weights"], gain.gain["weights"])
    )
    # (corners, out, in, *modes), by how the layer multiplies.
    W = np.asarray(base.weights_real + 1j * base.weights_imag)
    for adapter, expected in (
        (lora, W + np.moveaxis(np.asarray(B @ A), (-2, -1), (1, 2))),
        (gain, W * (1 + np.moveaxis(np.asarray(g), -1, 1))[:, :, None]),
    ):
        new = (jnp.asarray(expected.real), jnp.asarray(expected.imag))
        plain = eqx.tree_at(lambda m: (m.weights_real, m.weights_imag), base, new)
        y = jax.jit(adapter.__call__)(x)
        np.testing.assert_allclose(y, plain(x), rtol=1e-4, atol=1e-5)
        assert np.max(np.abs(y - base(x))) > 1e-2


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_the_frequencies_are_those_of_waves(dims):
    from pdequinox.conv import SpectralConv

    base = SpectralConv(dims, 2, 2, 3, key=jr.key(0))
    banded = moved(LoRASpectral(base, 2, 2.0, key=jr.key(1), bands={2: 1}))
    k = np.array(list(np.ndindex(*[5] * dims)))
    k[:, :-1] -= 2  # from -2 to 2, and from 0 to 4
    points = np.stack(np.meshgrid(*[np.arange(9)] * dims, indexing="ij"), axis=-1)
    waves = np.cos(2 * np.pi / 9 * np.einsum("...d,kd->k...", points, k))
    x = jnp.asarray(np.stack([waves, waves], axis=1), jnp.float32)
    changed = jax.vmap(banded)(x) - jax.vmap(base)(x)
    size = np.max(np.abs(np.asarray(changed)), axis=tuple(range(1, dims + 2)))
    low = np.max(np.abs(k), axis=1) < 2
    assert np.all(size[low] > 1e-2) and np.all(size[~low] < 1e-4)
