"""BEFT: a vector that is added to the layer's bias."""

from ._type import Converted, Module, Type


class BEFT(Type):
    """the layer's bias changed."""

    tensors = "beft_bias"
    layers = None

    def read(self, m: Module) -> Converted:
        (bias,) = m.take({"beft_bias": (1, m.layout.outputs)})
        return Converted(None, 1, 1.0, {}, bias.reshape(-1))
