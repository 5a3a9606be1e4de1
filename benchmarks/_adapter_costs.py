"""The costs of each adapter on one linear layer: parameters, multiplications, communication."""

import math
from collections.abc import Callable
from typing import NamedTuple


class Layer(NamedTuple):
    """A linear layer of `(out, inputs)`, of which a device has `o` outputs and `i` inputs."""

    out: int
    inputs: int
    o: int
    i: int

    @property
    def weight(self) -> int:
        """How many of the weight's numbers the device has."""
        return self.o * self.i


class Terms(NamedTuple):
    """The costs of an adapter in a layer. Multiplications are those of one token on one device."""

    trains: int  # numbers on the device
    holds: int = 0  # numbers of the adapter that are frozen, on the device
    forward: float = 0  # beyond `W x`
    backward: float = 0  # beyond the gradient of `x` through `W`
    # The part of `forward` that the gradients do not need, and whether one needs `W x` itself.
    unused: float = 0
    needs_product: bool = False
    # FSDP: the adapter's numbers that are gathered.
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
    both = r * (layer.o + layer.i)
    return Terms(
        trains=both,
        forward=both,
        backward=2 * both,
        unused=r * layer.o,
        gathers=2 * r * layer.out,
        between=r,
    )


def lora_fa(layer: Layer, r: int) -> Terms:
    """LoRA without the gradient of `A`."""
    terms, A = lora(layer, r), r * layer.i
    return terms._replace(trains=terms.trains - A, holds=A, backward=terms.backward - A)


def dora(layer: Layer, r: int) -> Terms:
    """LoRA, and a factor for each output whose gradient needs what it multiplies.

    Not counted: the row norms, `4 r` flops for each number of the weight, whatever the batch.
    """
    terms = lora(layer, r)
    return terms._replace(
        trains=terms.trains + layer.o,
        unused=0,
        needs_product=True,
        gathers=terms.gathers + 3 * layer.out,
    )


def vera(layer: Layer, r: int) -> Terms:
    """`B A x` without gradients of `A` and `B`. Not counted: drawing both at each use."""
    both = r * (layer.o + layer.i)
    return Terms(
        trains=layer.o + r,
        holds=1,  # the seed: as many bytes as one number has
        forward=both,
        backward=both,
        gathers=3 * layer.out,
        between=r,
    )


def ia3(layer: Layer, r: int) -> Terms:
    """A factor for each output, whose gradient needs `W x`."""
    return Terms(trains=layer.o, needs_product=True, gathers=3 * layer.out)


def oft(layer: Layer, r: int) -> Terms:
    """`blockdiag(R) W x`. Not counted: the Cayley map, whatever the batch."""
    rotation = r * layer.o
    return Terms(
        trains=math.ceil(layer.out / r) * r * r,
        forward=rotation,
        backward=2 * rotation,
        unused=rotation,
        needs_product=True,
    )


def lokr(layer: Layer, r: int) -> Terms:
    """`A (X B^T)`, with `x` as the matrix `X` of `r` rows. The rows are cut."""
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
    """`B R A x`, of which `R` trains."""
    both = r * (layer.o + layer.i)
    return Terms(
        trains=r * r,
        holds=both,
        forward=both + r * r,
        backward=both + 2 * r * r,
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
