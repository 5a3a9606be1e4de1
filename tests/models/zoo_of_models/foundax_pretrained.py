"""Foundation models for PDEs: the architectures that foundax ships, with random weights."""

import foundax
import jax
import jax.numpy as jnp

from .._model import Model, normal

MODELS = (
    Model(
        "foundax-dpot",
        lambda key: foundax.dpot(
            img_size=8,
            patch_size=4,
            in_channels=2,
            out_channels=3,
            in_timesteps=2,
            n_blocks=2,
            embed_dim=16,
            out_layer_dim=6,
            depth=1,
            modes=2,
            n_cls=3,
            key=key,
        ),
        normal((1, 2, 8, 8, 2)),
        layers=9,
    ),
    Model(
        "foundax-morph",
        lambda key: foundax.morph(
            patch_size=4,
            dim=16,
            depth=1,
            heads=2,
            heads_xa=2,
            mlp_dim=24,
            max_components=2,
            conv_filter=4,
            max_patches=4,
            max_fields=2,
            dropout=0.0,
            emb_dropout=0.0,
            key=key,
        ),
        normal((1, 1, 8, 8, 2)),
        layers=26,
    ),
    Model(
        "foundax-mpp",
        lambda key: foundax.mpp(
            embed_dim=16, processor_blocks=1, n_states=4, drop_path=0.0, num_heads=2, key=key
        ),
        lambda key: (
            jax.random.normal(key, (1, 2, 32, 32, 2)),
            jnp.array([0, 2]),
            jnp.zeros((1, 2), int),
        ),
        layers=9,
    ),
    Model(
        "foundax-bcat",
        lambda key: foundax.bcat(
            n_layer=1,
            dim_emb=16,
            dim_ffn=24,
            n_head=2,
            x_num=8,
            max_output_dim=1,
            patch_num=2,
            patch_num_output=2,
            conv_dim=6,
            max_time_len=4,
            max_data_len=4,
            data_dim=2,
            key=key,
        ),
        lambda key: (jax.random.normal(key, (1, 4, 8, 8, 2)), jnp.arange(4.0).reshape(1, 4, 1)),
        lambda model, data, times: model(data, times, 2),
        layers=11,
    ),
    Model(
        "foundax-poseidon",
        lambda key: foundax.poseidon(
            image_size=16,
            patch_size=4,
            num_channels=2,
            num_out_channels=3,
            embed_dim=8,
            depths=(1, 1),
            num_heads=(1, 2),
            skip_connections=(1, 0),
            window_size=2,
            pretrained_window_sizes=(0, 0),
            key=key,
        ),
        lambda key: (jax.random.normal(key, (1, 16, 16, 2)), jnp.full((1,), 0.5)),
        lambda model, x, time: model(pixel_values=x, time=time).output,
        layers=64,
    ),
)
