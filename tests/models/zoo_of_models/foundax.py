"""Neural operators: foundax."""

from typing import Any

import foundax
import jax
import jax.numpy as jnp
from foundax.architectures.transformer import DecoderBlock, EncoderBlock

from .._model import Model, normal


def _each(model: Any, *inputs: Any) -> Any:
    return jax.vmap(model)(*inputs)


def _deeponet(**options: Any) -> Any:
    return lambda key: foundax.deeponet(
        n_sensors=12,
        coord_dim=2,
        basis_functions=6,
        hidden_dim=8,
        n_layers=2,
        n_heads=2,
        **options,
        key=key,
    )


def _geofno_inputs(key: Any) -> tuple[Any, ...]:
    k1, k2 = jax.random.split(key)
    nodes = jax.random.uniform(k1, (9, 2))
    x = jnp.concatenate([jax.random.normal(k2, (9, 1)), nodes], axis=-1)
    return x, jnp.ones((9, 1)), nodes, jnp.full((9, 1), 1 / 9)


MODELS = (
    Model("foundax-linear", lambda key: foundax.linear(6, 4, key=key), normal((3, 6)), layers=1),
    Model(
        "foundax-mlp",
        lambda key: foundax.mlp(6, 4, hidden_dims=8, layer_norm=True, key=key),
        normal((3, 6)),
        _each,
        layers=3,
    ),
    Model(
        "foundax-fno1d",
        lambda key: foundax.fno1d(2, 8, 3, d_vars=3, n_layers=2, key=key),
        normal((1, 10, 2)),
        layers=5,
    ),
    Model(
        "foundax-fno2d",
        lambda key: foundax.fno2d(2, 8, 3, n_layers=2, d_model=(8, 6), key=key),
        normal((1, 8, 6, 2)),
        layers=5,
    ),
    Model(
        "foundax-fno3d",
        lambda key: foundax.fno3d(2, 6, 2, n_layers=1, d_model=(4, 4, 6), key=key),
        normal((1, 4, 4, 6, 2)),
        layers=4,
    ),
    Model(
        "foundax-unet1d", lambda key: foundax.unet1d(2, 3, depth=2, wf=2, key=key), normal((16, 2))
    ),
    Model(
        "foundax-unet2d",
        lambda key: foundax.unet2d(2, 3, depth=2, wf=2, key=key),
        normal((8, 8, 2)),
    ),
    Model(
        "foundax-unet3d",
        lambda key: foundax.unet3d(1, 2, depth=1, wf=2, activation=jax.nn.celu, key=key),
        normal((4, 4, 4, 1)),
    ),
    Model(
        "foundax-cno2d",
        lambda key: foundax.cno2d(
            2, 3, size=8, N_layers=1, N_res=1, N_res_neck=1, channel_multiplier=4, key=key
        ),
        normal((1, 8, 8, 2)),
    ),
    Model(
        "foundax-mgno2d",
        lambda key: foundax.mgno2d(
            (8, 8), num_layer=2, num_channel_u=4, num_iteration=[(1, 1)] * 2, key=key
        ),
        normal((8, 8, 3)),
    ),
    Model("foundax-deeponet", _deeponet(n_outputs=2), normal((12,), (5, 2)), layers=6),
    Model(
        "foundax-deeponet-resmlp-bilinear",
        _deeponet(branch_type="resmlp", trunk_type="resmlp", combination_type="bilinear"),
        normal((12,), (5, 2)),
        layers=12,
    ),
    Model(
        "foundax-deeponet-conv1d-siren-mlp",
        _deeponet(branch_type="conv1d", trunk_type="siren", combination_type="mlp"),
        normal((12,), (5, 2)),
        layers=7,
    ),
    Model(
        "foundax-deeponet-transformer",
        _deeponet(branch_type="transformer"),
        normal((12,), (5, 2)),
        layers=17,
    ),
    Model(
        "foundax-deeponet-attention",
        _deeponet(combination_type="attention"),
        normal((12,), (5, 2)),
        layers=13,
        note="one key: query and key projections have no effect, in the plain model either",
    ),
    Model(
        "foundax-geofno",
        lambda key: foundax.geofno(2, (2, 2), (1.0, 1.0), layers=(8, 8, 6), fc_dim=10, key=key),
        _geofno_inputs,
        layers=5,
    ),
    Model(
        "foundax-gnot",
        lambda key: foundax.gnot(2, [3], n_hidden=8, n_layers=1, n_head=2, n_inner=2, key=key),
        normal((1, 6, 2), (1, 5, 3)),
        lambda model, x, branch: model(x, [branch]),
        layers=25,
    ),
    Model(
        "foundax-pit",
        lambda key: foundax.pit(
            2,
            3,
            hid_channels=8,
            n_head=2,
            input_res=(4, 4),
            latent_res=(2, 2),
            output_res=(4, 4),
            key=key,
        ),
        normal((1, 16, 2)),
        layers=12,
    ),
    Model(
        "foundax-encoder-block",
        lambda key: EncoderBlock(8, 2, 8, 12, key=key),
        normal((5, 8)),
        layers=6,
        note="the whole `foundax.transformer` cannot be called: its positions add an axis",
    ),
    Model(
        "foundax-decoder-block",
        lambda key: DecoderBlock(8, 2, 8, 12, key=key),
        normal((5, 8), (4, 8)),
        layers=10,
    ),
    Model(
        "foundax-pointnet",
        lambda key: foundax.pointnet(3, 2, hidden_dims=[8, 6, 8, 6], key=key),
        normal((7, 3)),
        layers=5,
    ),
)
