"""SineLoRA: a method for the zoo's kinds of layer. Edit this file."""

import jax
import jax.numpy as jnp

import jno_lora_zoo as zoo
from jno.lora import About


class SineLoRA(zoo.Additive):
    """Sine-activated LoRA: the sine raises the rank of a low-rank update, without parameters.

    Law: `W' = W + (alpha / r) sin(omega B A) / g`, entry by entry, `A ~ N(0, 1/in)` and `B = 0`.
    `r(in + out)` parameters train, and the update has full rank in general. `omega` is an option,
    10 by default. Here `g = omega`, so that small updates are LoRA's.

    Paper: Ji et al., "Efficient Learning with Sine-Activated Low-Rank Matrices", arXiv:2403.19243,
    which chooses `omega` and the gain `g` for each task.
    """

    adapter_fields = ("A", "B")
    variant = "sine-lora"
    about = About(family="structured", paper="2403.19243", formula="r (in + out)")

    A: jax.Array  # (r, in)
    B: jax.Array  # (out, r)
    omega: jax.Array  # frozen, and an array so that files hold it

    def start(self, W, r, key, dtype, *, omega=10.0):
        outputs, inputs = W.shape
        A = jax.random.normal(key, (r, inputs), dtype) / inputs**0.5
        return {"A": A, "B": jnp.zeros((outputs, r), dtype), "omega": jnp.asarray(omega, dtype)}

    def update(self, W):
        A, B, omega = (array.astype(W.dtype) for array in (self.A, self.B, self.omega))
        return self.times_scale(jnp.sin(omega * (B @ A)) / omega)


# One line for each kind of layer: SineLoRALinear, SineLoRAConv, SineLoRAConvTranspose.
for kind in (zoo.LinearLayer, zoo.ConvLayer, zoo.ConvTransposeLayer):
    globals().update(zoo.adapters_for(kind, __name__, methods=[SineLoRA]))
