"""Whole models of foundax: adapted, trained a little, merged."""

import jax
import jax.numpy as jnp
import pytest
from foundax.architectures import cno, fno, geofno, mgno, pcno, unet
from foundax_cases import check_everything, filled
from jax_dpot.model_eqx import DPOTNet
from jax_mpp.avit_eqx import AViT

from jno.lora import LoRAWrapper, apply_lora, plan_lora


def normal(*shape):
    return lambda key: (jax.random.normal(key, shape),)


# Layers that the default adapters cannot reach, and how often each of ours is used.
MODELS = {
    "UNet1D": (
        lambda key: unet.UNet1D(2, 2, depth=1, wf=2, key=key),
        normal(8, 2),
        {"LoRAChannelLastConv": 7, "LoRAChannelLastConvTranspose": 1},
    ),
    "UNet2D": (
        lambda key: unet.UNet2D(2, 2, depth=1, wf=2, key=key),
        normal(4, 6, 2),
        {"LoRAChannelLastConv": 7, "LoRAChannelLastConvTranspose": 1},
    ),
    "UNet3D": (
        lambda key: unet.UNet3D(2, 2, depth=1, wf=2, key=key),
        normal(4, 4, 4, 2),
        {"LoRAChannelLastConv": 7, "LoRAChannelLastConvTranspose": 1},
    ),
    "CNO2D": (
        lambda key: cno.CNO2D(2, 2, 4, 1, N_res=0, N_res_neck=1, channel_multiplier=4, key=key),
        normal(4, 4, 2),
        {"LoRAChannelLastConv": 10},
    ),
    "MgNO": (
        lambda key: mgno.MgNO(
            (8, 8), 1, 4, 2, num_iteration=[(1, 1), (1, 1)], output_dim=2, key=key
        ),
        normal(8, 8, 2),
        {"LoRAChannelLastConv": 11, "LoRAChannelLastConvTranspose": 1},
    ),
    "FNO1D": (
        lambda key: fno.FNO1D(2, 6, 4, d_vars=2, n_layers=2, key=key),
        normal(1, 9, 2),
        {"LoRASpectral": 2, "LoRALinear": 3, "LoRAConv": 2},
    ),
    "FNO2D": (
        lambda key: fno.FNO2D(2, 6, 3, d_vars=2, n_layers=1, key=key),
        normal(6, 5, 2),
        {"LoRASpectral": 1, "LoRALinear": 3, "LoRAConv": 1},
    ),
    "FNO3D": (
        lambda key: fno.FNO3D(2, 6, 2, d_vars=2, n_layers=1, key=key),
        normal(4, 5, 4, 2),
        {"LoRASpectral": 1, "LoRALinear": 3, "LoRAConv": 1},
    ),
}


def adapters_in(model):
    def is_adapter(node):
        return isinstance(node, LoRAWrapper)

    found = [type(n).__name__ for n in jax.tree.leaves(model, is_leaf=is_adapter) if is_adapter(n)]
    return {name: found.count(name) for name in found}


def adapted(model, key):
    return apply_lora(model, 2, 4.0, key=key, wrapper=["auto"])


@pytest.mark.parametrize("name", MODELS)
def test_model(name, getkey):
    make, data, expected = MODELS[name]
    result = check_everything(make, data, adapted, getkey())
    assert expected.items() <= adapters_in(result.adapted).items()


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
