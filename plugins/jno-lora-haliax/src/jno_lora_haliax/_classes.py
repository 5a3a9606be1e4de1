"""The classes of Haliax, recognised without importing Haliax."""

from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
from jaxtyping import Array

from jno_lora_zoo import ByName


def haliax() -> ModuleType:
    """Haliax itself. Whoever calls an adapter of one of its layers has imported it already."""
    import haliax  # pyright: ignore[reportMissingImports]

    return haliax


class HaliaxArray(metaclass=ByName):
    """`haliax.NamedArray`."""

    array: Array
    axes: tuple[Any, ...]  # each with a `name` and a `size`
    dtype: np.dtype
    rearrange: Callable[..., "HaliaxArray"]

    names = frozenset({("haliax.core", "NamedArray")})


class HaliaxLinear(metaclass=ByName):
    """`haliax.nn.Linear` and its subclasses."""

    weight: HaliaxArray
    bias: HaliaxArray | None

    names = frozenset({("haliax.nn.linear", "Linear")})


class HaliaxEmbedding(metaclass=ByName):
    """`haliax.nn.Embedding` and its subclasses."""

    weight: HaliaxArray

    names = frozenset({("haliax.nn.embedding", "Embedding")})


class HaliaxConv(metaclass=ByName):
    """`haliax.nn.Conv` and its subclasses."""

    weight: HaliaxArray

    names = frozenset({("haliax.nn.conv", "Conv")})


HaliaxLayer = HaliaxLinear | HaliaxEmbedding | HaliaxConv
