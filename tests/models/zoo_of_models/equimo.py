"""Vision and language models: equimo."""

from typing import Any

import jax
import jax.numpy as jnp
from equimo.core.layers.mamba import Mamba2Mixer
from equimo.language.models import TextTransformerEncoder
from equimo.vision.models.convnext import ConvNeXt
from equimo.vision.models.mobilenet import MobileNetv3
from equimo.vision.models.vit import VisionTransformer
from equimo.vision.models.vssd import Vssd

from .._model import Model, normal


def _inference(model: Any, *inputs: Any) -> Any:
    return model(*inputs, inference=True)


def _padded_tokens(key: Any) -> tuple[Any, ...]:
    ids = jax.random.randint(key, (6,), 0, 13)
    return ids, jnp.array([0.0, 0.0, 0.0, 0.0, 1.0, 1.0])


MODELS = (
    Model(
        "equimo-vit",
        lambda key: VisionTransformer(
            img_size=16,
            in_channels=3,
            dim=16,
            patch_size=8,
            num_heads=2,
            depths=[2],
            reg_tokens=1,
            init_values=0.1,
            num_classes=5,
            mlp_ratio=2.0,
            key=key,
        ),
        normal((3, 16, 16)),
        _inference,
        layers=10,
    ),
    Model(
        "equimo-convnext",
        lambda key: ConvNeXt(
            3,
            depths=[1, 1, 1, 1],
            dims=[8, 8, 16, 16],
            num_classes=5,
            layer_scale_init_value=0.1,
            key=key,
        ),
        normal((3, 64, 64)),
        _inference,
        layers=17,
    ),
    Model(
        "equimo-mobilenetv3",
        lambda key: MobileNetv3(
            3,
            [
                (8, 8, 3, 2, True, "relu"),
                (8, 16, 3, 1, False, "relu"),
                (12, 24, 5, 2, True, "hard_swish"),
            ],
            # 64: with fewer, the last norm has a group per channel, whose mean is a constant.
            last_channels=64,
            num_classes=5,
            key=key,
        ),
        normal((3, 32, 32)),
        _inference,
        layers=15,
    ),
    Model(
        "equimo-mamba2",
        lambda key: Mamba2Mixer(8, expand=2, head_dim=4, d_state=6, key=key),
        normal((7, 8)),
        lambda model, x: model(x, key=jax.random.key(0), inference=True),
        layers=3,
    ),
    Model(
        "equimo-vssd",
        lambda key: Vssd(
            img_size=16,
            in_channels=3,
            dim=8,
            patch_size=4,
            depths=[1, 1],
            num_heads=[2, 2],
            attentions_layers=("mamba2mixer", "attention"),
            mlp_ratio=2.0,
            num_classes=5,
            key=key,
        ),
        normal((3, 16, 16)),
        _inference,
        layers=22,
    ),
    Model(
        "equimo-text",
        lambda key: TextTransformerEncoder(
            dim=16, mlp_ratio=2.0, depth=1, num_heads=2, vocab_size=13, key=key
        ),
        _padded_tokens,
        _inference,
        layers=4,
    ),
)
