"""Whole models of foundax: adapted, trained a little, merged."""

import jax.numpy as jnp
import numpy as np
import pytest
from foundax.architectures import fno, geofno, mgno, pcno, unet
from foundax_cases import filled, normal, perturbed, run, same_form
from jax_dpot.model_eqx import DPOTNet
from jax_mpp.avit_eqx import AViT
from zoo_cases import assert_close

from jno.lora import apply_lora, merge_lora, plan_lora
from jno.lora.extending import adapted_layers

# Layers that the default adapters cannot reach, and how often each of ours is used.
MODELS = {
    "UNet1D": (
        lambda key: unet.UNet1D(2, 2, depth=1, wf=2, key=key),
        normal(8, 2),
        {"LoRAChannelLastConv": 7, "LoRAChannelLastConvTranspose": 1},
    ),
    "MgNO": (
        lambda key: mgno.MgNO(
            (8, 8), 1, 4, 2, num_iteration=[(1, 1), (1, 1)], output_dim=2, key=key
        ),
        normal(8, 8, 2),
        {"LoRAChannelLastConv": 11, "LoRAChannelLastConvTranspose": 1},
    ),
    "FNO2D": (
        lambda key: fno.FNO2D(2, 6, 3, d_vars=2, n_layers=1, key=key),
        normal(6, 5, 2),
        {"LoRASpectral": 1, "LoRALinear": 3, "LoRAConv": 1},
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_an_adapted_model_starts_as_the_model_moves_and_merges(name, getkey):
    make, data, expected = MODELS[name]
    base, inputs = filled(make, getkey()), data(getkey())
    adapted = apply_lora(base, 2, 4.0, key=getkey(), wrapper=["auto"])
    found = [type(adapter).__name__ for _, adapter in adapted_layers(adapted)]
    assert {cls: found.count(cls) for cls in expected} == expected
    trained = perturbed(adapted, size=0.2)
    merged = merge_lora(trained)
    assert same_form(merged, base)
    y, first, later, plain = (run(m, *inputs) for m in (base, adapted, trained, merged))
    assert_close(first, y, 1e-4)
    assert_close(plain, later, 1e-4)
    assert np.max(np.abs(later - y)) > 1e-3 * np.max(np.abs(y))


def geometric(module, key):
    """GeoFNO and PCNO differ in one argument."""
    measures = () if module is geofno else (2,)
    cls = geofno.GeoFNO if module is geofno else pcno.PCNO
    return cls(2, jnp.ones((3, 2)), *measures, layers=[4, 5], fc_dim=6, out_dim=2, key=key)


# Their calls take too long to compile here; where the adapters go is known without one.
LARGE = {
    "MPP": (
        lambda key: AViT(embed_dim=8, processor_blocks=1, n_states=4, num_heads=2, key=key),
        {"space_bag": "LoRASubsampledLinear"},
    ),
    "DPOT": (
        lambda key: DPOTNet(16, 8, n_blocks=2, embed_dim=8, depth=2, key=key),
        {"blocks/0/afno": "LoRASpectral", "blocks/1/afno": "LoRASpectral"},
    ),
    "GeoFNO": (lambda key: geometric(geofno, key), {"sp_convs/0": "LoRASpectral"}),
    "PCNO": (lambda key: geometric(pcno, key), {"sp_convs/0": "LoRASpectral"}),
}


@pytest.mark.parametrize("name", LARGE)
def test_where_the_adapters_go_in_larger_models(name, getkey):
    make, expected = LARGE[name]
    plan = plan_lora(filled(make, getkey()), 2, 4.0, wrapper="auto")
    wrapped = {row.path: row.wrapper.__name__ for row in plan.rows if row.wrapper is not None}
    assert expected.items() <= wrapped.items()
    assert {"LoRASpectral", "LoRASubsampledLinear"} & set(wrapped.values()) == set(
        expected.values()
    )
