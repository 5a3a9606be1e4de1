"""Where the adapters of sharded layers lie. (That they run there is the kit's to check.)"""

import jax
import numpy as np
import pytest
from foundax_cases import CONVS, SPECTRAL, SUBSAMPLED, filled
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P

from jno.lora import apply_lora


def placed(layer, spec, key, wrapper="auto", **options):
    """`layer` on two devices, its weights cut as `spec` says."""
    mesh = Mesh(np.array(jax.devices()[:2]), ("x",))

    def fits(leaf):
        return leaf.ndim > 1 and leaf.ndim >= len(spec)

    def place(leaf):
        return jax.device_put(leaf, NamedSharding(mesh, spec if fits(leaf) else P()))

    layer = jax.tree.map(place, filled(layer.make, key))
    return apply_lora(layer, 2, 4.0, key=key, wrapper=wrapper, options=options)


@pytest.mark.parametrize(
    ("layer", "spec", "A", "B"),
    [
        (CONVS["Conv2d"], P(None, None, "x"), P(None, "x"), P()),
        (CONVS["Conv2d"], P(None, "x"), P(), P()),  # a row of the matrix is not cut evenly
        (CONVS["grouped"], P(None, None, "x"), P(), P("x")),
        (SUBSAMPLED["subsample_out"], P("x"), P(), P("x")),
    ],
)
def test_matrices(layer, spec, A, B, getkey):
    adapted = placed(layer, spec, getkey())
    assert same(adapted.lora_A, A) and same(adapted.lora_B, B)


@pytest.mark.parametrize(
    ("layer", "spec", "family", "A", "B"),
    [
        ("SpectralConv2d", P("x"), "weight_2", P(*[None] * 4, "x"), P()),
        ("SpectralConv2d", P(*[None] * 3, "x"), "weight_1", *[P(None, None, "x")] * 2),
        ("AFNO2D", P("x"), "w1", P("x"), P("x")),
        ("AFNO2D", P(None, None, None, "x"), "w2", P(), P(None, None, "x")),
    ],
)
def test_spectral_weights(layer, spec, family, A, B, getkey):
    adapted = placed(SPECTRAL[layer], spec, getkey())
    assert same(adapted.lora_A[family], A) and same(adapted.lora_B[family], B)


def test_bands_and_gains(getkey):
    layer = SPECTRAL["SpectralConv2d"]
    banded = placed(layer, P("x"), getkey(), "LoRASpectral", bands={2: 1})
    assert same(banded.lora_A["weight_1_below_2"], P(None, None, None, "x"))
    gains = placed(layer, P(None, None, None, "x"), getkey(), "GainSpectral")
    assert same(gains.gain["weight_1"], P(None, None, "x"))


def same(array, spec):
    return array.sharding.is_equivalent_to(NamedSharding(array.sharding.mesh, spec), array.ndim)
