"""An adapter of your own: a trained factor for each output of a linear layer.

pip install "jno-lora[zoo,testing]"
python examples/first_adapter.py
cd examples && jno-lora check first_adapter:RowGain
"""

import equinox as eqx
import jax
import jax.numpy as jnp

from jno.lora import LoRAWrapper, Net
from jno.lora.extending import compute_dtype


class RowGain(LoRAWrapper):
    """A trained factor for each output of a linear layer."""

    adapter_fields = ("gain",)  # the arrays that train
    base: eqx.nn.Linear
    gain: jax.Array

    @classmethod
    def applies_to(cls, leaf):
        is_linear = type(leaf) is eqx.nn.Linear and eqx.is_inexact_array(leaf.weight)
        return is_linear and leaf.weight.ndim == 2  # one layer, not a stack of layers

    def __init__(self, base, *, key):
        self.base = base
        self.gain = jnp.ones(len(base.weight), compute_dtype(base.weight))

    def merge(self):  # a plain layer, with the adapter in its weight
        weight = self.gain[:, None] * self.base.weight.astype(self.gain.dtype)
        weight = weight.astype(self.base.weight.dtype)
        return eqx.tree_at(lambda layer: layer.weight, self.base, weight)

    def __call__(self, x):
        return self.merge()(x)


def main():
    """Print the summary of a model with the adapter."""
    model = eqx.nn.MLP(16, 8, width_size=32, depth=2, key=jax.random.key(0))
    net = Net(model).freeze().lora(wrapper=RowGain)
    print(net.summary())
    return net


if __name__ == "__main__":
    main()
