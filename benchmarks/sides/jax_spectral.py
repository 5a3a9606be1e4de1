"""Training CP of spectral weights, alone or with LoRA elsewhere, or all parameters. Serves ours."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from jno.lora import Net
from jno_lora_foundax import CPSpectral, ModeWeights

from ._models import data_of, model_of
from ._timing import Subject
from .jax_train import add_training


class ComplexSpectral(eqx.Module):
    """A user's spectral layer, whose weights are one complex array."""

    w: jax.Array  # (modes, in, out)

    def __call__(self, x: jax.Array) -> jax.Array:
        """The layer's output, `(points, out)`."""
        modes = jnp.fft.rfft(x, axis=0)[: len(self.w)]
        return jnp.fft.irfft(jnp.einsum("xi,xio->xo", modes, self.w), len(x), axis=0)


class CPComplexSpectral(CPSpectral):
    """CP on the user's layer."""

    @classmethod
    def mode_weights(cls, leaf: Any) -> dict[str, ModeWeights] | None:
        """The layout of the user's layer."""
        return {"w": ModeWeights(("w",), "xio")} if isinstance(leaf, ComplexSpectral) else None


def build(case: dict[str, Any], device: str) -> Subject:
    """A step of CP, or of full fine-tuning with `adapter="all"`."""
    plain = _model(case)
    net = Net(plain)
    if case["adapter"] != "all":
        net.freeze()
        if case["rank"]:
            cp = CPComplexSpectral if case["complex"] else CPSpectral
            net.lora(case["rank"], wrapper=cp)
        if case["elsewhere"]:
            net.lora(case["elsewhere"], target="^(?!.*layers_conv)", wrapper="lora")
    queue = device == "gpu"
    return add_training(Subject(), case, net.module, net.trainable, data_of(case, plain), queue)


def _model(case: dict[str, Any]) -> Any:
    """The FNO of the case, with the user's layers in the place of foundax's if it is complex."""
    fno = model_of(case)
    if not case["complex"]:
        return fno

    def own(layer: Any) -> ComplexSpectral:
        w = jax.lax.complex(layer.weight_real, layer.weight_imag)
        return ComplexSpectral(jnp.transpose(w, (2, 0, 1)))

    layers = fno.spectral_layers.layers_conv
    return eqx.tree_at(lambda m: m.spectral_layers.layers_conv, fno, list(map(own, layers)))
