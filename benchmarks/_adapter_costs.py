"""The costs of each adapter on one linear layer: parameters, multiplications, communication."""

import math
from collections.abc import Callable
from typing import NamedTuple


class Layer(NamedTuple):
    """A linear layer `(out, inputs)`. A device has `o` of its outputs and `i` of its inputs."""

    out: int
    inputs: int
    o: int
    i: int

    @property
    def weight(self) -> int:
        """How many numbers of the weight the device has."""
        return self.o * self.i


class Terms(NamedTuple):
    """The costs of an adapter in a layer. Multiplications count one token on one device."""

    trains: int  # numbers on the device
    holds: int = 0  # frozen numbers of the adapter, on the device
    forward: float = 0  # beyond `W x`
    backward: float = 0  # beyond the gradient of `x` through `W`
    # The multiplications of `forward` that no gradient needs, and whether a gradient needs `W x`.
    unused: float = 0
    needs_product: bool = False
    # FSDP: how many numbers of the adapter are gathered.
    gathers: int = 0
    # Tensor parallelism: the numbers between the two products, which devices sum for each token
    # (where outputs are cut, their gradient), and whether a gradient needs them.
    between: int = 0
    needs_between: bool = True


def full(layer: Layer, r: int) -> Terms:
    """Everything trains: no adapter, and the gradient of the weight."""
    return Terms(trains=layer.weight, backward=layer.weight)


def lora(layer: Layer, r: int) -> Terms:
    """`B A x`; the gradients of `A x`, `x`, `A` and `B`."""
    factors = r * (layer.o + layer.i)
    return Terms(
        trains=factors,
        forward=factors,
        backward=2 * factors,
        unused=r * layer.o,
        gathers=2 * r * layer.out,
        between=r,
    )


def lora_fa(layer: Layer, r: int) -> Terms:
    """LoRA without the gradient of `A`."""
    terms, A = lora(layer, r), r * layer.i
    return terms._replace(trains=terms.trains - A, holds=A, backward=terms.backward - A)


def dora(layer: Layer, r: int) -> Terms:
    """LoRA, and a factor for each output. The gradient of the factor needs the output.

    Not counted: the row norms, `4 r` flops for each number of the weight, for any batch.
    """
    terms = lora(layer, r)
    return terms._replace(
        trains=terms.trains + layer.o,
        unused=0,
        needs_product=True,
        gathers=terms.gathers + 3 * layer.out,
    )


def vera(layer: Layer, r: int) -> Terms:
    """`B A x` without gradients of `A` and `B`. Not counted: drawing `A` and `B` at each use."""
    factors = r * (layer.o + layer.i)
    return Terms(
        trains=layer.o + r,
        holds=1,  # the seed, as large as one number
        forward=factors,
        backward=factors,
        gathers=3 * layer.out,
        between=r,
    )


def ia3(layer: Layer, r: int) -> Terms:
    """A factor for each output, whose gradient needs `W x`."""
    return Terms(trains=layer.o, needs_product=True, gathers=3 * layer.out)


def oft(layer: Layer, r: int) -> Terms:
    """`blockdiag(R) W x`. Not counted: the Cayley map, which does not depend on the batch."""
    rotation = r * layer.o
    return Terms(
        trains=math.ceil(layer.out / r) * r * r,
        forward=rotation,
        backward=2 * rotation,
        unused=rotation,
        needs_product=True,
    )


def lokr(layer: Layer, r: int) -> Terms:
    """`A (X B^T)`, with `x` as the matrix `X` of `r` rows. Devices cut the rows."""
    devices = layer.out * layer.inputs // layer.weight
    by_B, by_A = layer.out * layer.i / r, r * layer.out / devices
    return Terms(
        trains=r * r + math.ceil(layer.out / r) * math.ceil(layer.inputs / r),
        forward=by_B + by_A,
        backward=2 * (by_B + by_A),
        unused=by_A,
        between=layer.out,
        needs_between=False,
    )


def lora_xs(layer: Layer, r: int) -> Terms:
    """`B R A x`. Only `R` trains."""
    factors = r * (layer.o + layer.i)
    return Terms(
        trains=r * r,
        holds=factors,
        forward=factors + r * r,
        backward=factors + 2 * r * r,
        unused=r * layer.o + r * r,
        gathers=2 * r * layer.out,
        between=r,
    )


# By the names of the variants.
TERMS: dict[str, Callable[[Layer, int], Terms]] = {
    "full": full,
    "lora": lora,
    "lora-fa": lora_fa,
    "dora": dora,
    "lora-xs": lora_xs,
    "lokr": lokr,
    "oft": oft,
    "vera": vera,
    "ia3": ia3,
}
